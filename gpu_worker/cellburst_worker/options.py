"""The worker's command line, its folders and its token."""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error

LEAST_BYTES = 1 << 20  # a bound below it is a mistake in the unit


@dataclass(frozen=True)
class Options:
    """What the command line said, checked."""

    join: str
    token_file: Path | None
    token: str
    data_folder: Path
    run_folder: Path
    simulate_gpus: str
    engine: str
    name: str
    log_json: bool
    warm_pool: bool = True
    max_images_bytes: int | None = None  # None: by the disk, see `image_room` and `SnapshotStore`
    max_snapshots_bytes: int | None = None

    def read_token(self) -> str:
        """The token, read again at each dial so that a new one takes effect. Raises RequestError (UNAUTHENTICATED)."""
        if self.token_file is None:
            return self.token
        try:
            text = self.token_file.read_text(encoding="utf-8").strip()
        except OSError as why:
            raise error(
                ErrorCode.UNAUTHENTICATED, f"the token file {str(self.token_file)!r} cannot be read: {why.strerror}",
                next="give the path of the gateway's worker-token: --token-file DATA/worker-token",
            ) from None  # fmt: skip
        if not text.isascii() or not text.isprintable() or not text:
            raise error(ErrorCode.UNAUTHENTICATED, f"the token file {str(self.token_file)!r} holds no token")
        return text

    def token_owners(self) -> tuple[int, ...]:
        """The user id of who owns the token file: that user has the token already."""
        if self.token_file is None:
            return ()
        try:
            return (self.token_file.stat().st_uid,)
        except OSError:
            return ()


def parse(arguments: list[str]) -> Options:
    """Options of a command line. Ends the program with status 2 and a sentence when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m cellburst_worker", description="Own this machine's GPUs and containers for a Cellburst gateway."
    )
    parser.add_argument("--join", required=True, metavar="URL", help="the gateway: http(s)://HOST:PORT")
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token-file", type=Path, metavar="FILE", help="file with the worker's token")
    token.add_argument(
        "--token", default="", help="the token itself (others on this machine can see it: better a file)"
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="values and spooled output")
    parser.add_argument("--run-dir", type=Path, required=True, help="lock, sockets and container folders; a short path")
    parser.add_argument("--simulate-gpus", default="", metavar="A100:2,T4:1", help="declare GPUs that are not there")
    parser.add_argument("--engine", default="", choices=["", "gvisor", "process"], help="the engine to prefer")
    parser.add_argument("--name", default="", help="what the gateway calls this worker")
    parser.add_argument(
        "--warm-pool", action=argparse.BooleanOptionalAction, default=os.environ.get("CELLBURST_WARM_POOL", "") != "0",
        help="keep restored containers ready for images in use (default: unless CELLBURST_WARM_POOL=0)",
    )  # fmt: skip
    parser.add_argument(
        "--max-images-bytes", type=_size, metavar="BYTES",
        help="what images and downloads for them may take on the disk (default: 50 GiB, or half of what is free if less)",
    )  # fmt: skip
    parser.add_argument(
        "--max-snapshots-bytes", type=_size, metavar="BYTES",
        help="what templates and parked sessions may take on the disk (default: 50 GiB, or half of what is free if less)",
    )  # fmt: skip
    parser.add_argument("--log-json", action="store_true", help="logs as JSON lines")
    given = parser.parse_args(arguments)
    return Options(
        join=given.join, token_file=given.token_file, token=given.token, data_folder=given.data_dir.absolute(),
        run_folder=given.run_dir.absolute(), simulate_gpus=given.simulate_gpus, engine=given.engine, name=given.name,
        log_json=given.log_json, warm_pool=given.warm_pool, max_images_bytes=given.max_images_bytes,
        max_snapshots_bytes=given.max_snapshots_bytes,
    )  # fmt: skip


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < LEAST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes of {LEAST_BYTES} or more")
    return int(text)


def lock(run_folder: Path) -> IO[str]:
    """Be the one worker of a run folder until the file is closed. Raises RequestError naming the holder's pid."""
    file = open(run_folder / "worker.lock", "a+", encoding="utf-8")  # noqa: SIM115  held for the process's life
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        file.close()
        raise error(
            ErrorCode.CONFLICT, f"a worker with pid {pid} already runs in {str(run_folder)!r}",
            next="stop it, or give this one another --run-dir",
        ) from None  # fmt: skip
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def folder_id(run_folder: Path) -> str:
    """What tells apart the workers of one machine: the same after a restart."""
    return blake3(os.fsencode(run_folder)).hexdigest(length=4)


def worker_name(options: Options) -> str:
    """The given name, or one made of host and run folder."""
    return options.name or f"{socket.gethostname()}-{folder_id(options.run_folder)}"
