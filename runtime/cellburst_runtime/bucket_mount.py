"""Showing a bucket as a folder: one `rclone mount` (FUSE) for each, a child of the worker, which ends with its container.

    FOLDER/volumes/.NAME.0    the mount; FOLDER/volumes/NAME is a link to it, as of volumes (see `volume_mount`)
    FOLDER/layer/buckets/ID   what was written and is on its way, in the session's store, so that its size bounds it; ID.log
                              beside it has what failed

What a program wrote is uploaded when it closes the file, whole. Credentials are in the child's environment, and nowhere else. The
child carries a mark with the container's id: a worker that finds a dead one's containers ends it by that (`removal`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cellburst_protocol.buckets import BucketSource, is_refused_address
from cellburst_protocol.errors import ErrorCode, error

from .engine_child import Child
from .mounts import mounts_below, unmount_below
from .proc import HELPER_MARK, is_same_process, kill_until_none
from .tools import find_program

MOUNT_SECONDS = 30.0
CHECK_SECONDS = 30.0
FLUSH_SECONDS = 120.0  # for what was closed last to be uploaded, when its container has ended
# Of a server that is gone or hangs; with what is tried again by itself a program gets EIO after eight times as long (measured).
CONNECT_SECONDS, SILENT_SECONDS = 5, 10
_MOST_LOG_BYTES = 4 * 1024**2
_QUIET = ("--config=", "--log-level=ERROR", "--use-json-log")  # no configuration file of whoever runs the worker
_HARDLY_TRIED = (
    f"--contimeout={CONNECT_SECONDS}s", f"--timeout={SILENT_SECONDS}s", "--low-level-retries=1", "--retries=1",
)  # fmt: skip
_PASSED = ("PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")
_REFUSALS = ("403", "401", "Forbidden", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")

log = logging.getLogger(__name__)


class _Line(msgspec.Struct):
    level: str = ""
    msg: str = ""
    object: str = ""


@dataclass(frozen=True)
class Bucket:
    """One bucket of one container. `options` come from its secret (`buckets.bucket_options`), {} for what anybody may read."""

    source: BucketSource
    read_only: bool
    options: Mapping[str, str]

    @property
    def remote(self) -> str:
        """As rclone names it."""
        return f"B:{self.source.name}" + (f"/{self.source.key_prefix}" if self.source.key_prefix else "")

    def environment(self) -> dict[str, str]:
        """The child's: its connection, this machine's proxies and certificates, and nothing else of ours."""
        source = self.source
        is_amazon = not source.endpoint_url
        options = {
            "type": "s3", "provider": "AWS" if is_amazon else "Other", "env_auth": "false", "no_check_bucket": "true",
            "endpoint": source.endpoint_url, "requester_pays": "true" if source.requester_pays else "",
            "region": "us-east-1", **self.options,
        }  # fmt: skip
        found = {name: os.environ[name] for name in _PASSED if name in os.environ}
        return found | {f"RCLONE_CONFIG_B_{key.upper()}": value for key, value in options.items() if value}

    def clean(self, text: str) -> str:
        """A message without a value of the secret."""
        for key, value in self.options.items():
            if key != "region" and len(value) > 3:
                text = text.replace(value, "****")
        return text


class BucketMount:
    """A bucket at a folder. `tell` gets lines for the user, of uploads that failed."""

    def __init__(self, bucket: Bucket, place: Path, cache: Path, tell: Callable[[str], None]) -> None:
        self.bucket, self.place, self._cache, self._tell = bucket, place, cache, tell
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._log = cache.with_suffix(".log")  # where no container sees it
        self._told: set[str] = set()
        self._said_ended = False

    async def start(self, container: str, owner: tuple[int, int]) -> None:
        """Check that the bucket can be listed, and show it. Raises RequestError (BAD_ARGUMENT, FORBIDDEN), PlatformError
        (UNAVAILABLE, START_FAILED), OSError."""
        program, helper = find_program("rclone"), find_program("fusermount3") or find_program("fusermount")
        if not program or not helper or not Path("/dev/fuse").exists():
            missing = "rclone" if not program else "fusermount3" if not helper else "/dev/fuse"
            raise error(
                ErrorCode.START_FAILED, f"this worker cannot show buckets: it has no {missing}",
                next="on its machine: apt install rclone fuse3",
            )  # fmt: skip
        await asyncio.to_thread(_check_host, self.bucket.source.endpoint_url)
        await self._check(program)
        for folder in (self.place, self._cache):
            folder.mkdir(parents=True, exist_ok=True)
        arguments = [
            program, "mount", self.bucket.remote, str(self.place), *_QUIET, *_HARDLY_TRIED, f"--log-file={self._log}",
            f"--cache-dir={self._cache}", "--vfs-cache-mode=writes", "--vfs-write-back=0s", "--dir-cache-time=1s",
            "--attr-timeout=1s", "--vfs-cache-max-age=1m", "--vfs-cache-poll-interval=10s", "--umask=022",
            f"--uid={owner[0]}", f"--gid={owner[1]}", f"--devname={self.bucket.source.text}",
            *(["--allow-other"] if os.geteuid() == 0 else []), *(["--read-only"] if self.bucket.read_only else []),
        ]  # fmt: skip
        environment = {**self.bucket.environment(), HELPER_MARK: container}
        self._child = await Child.start(arguments, environment=environment)
        await self._mounted(self._child)
        self._watch = asyncio.create_task(self._read_log(self._child))

    async def close(self, *, flush: bool) -> None:
        """Take the folder away. With `flush` the container's processes are gone, and what they closed last is uploaded first;
        where that is not sure, it is told."""
        child, self._child = self._child, None
        if child is None:
            return
        if flush and child.ended:
            self._tell_ended(await child.wait())
        await unmount_below(self.place)
        try:
            async with asyncio.timeout(FLUSH_SECONDS if flush else 0):
                code = await child.wait()
            if flush and code:
                self._tell_ended(code)
        except TimeoutError:
            if flush:
                what = f"uploads may be lost: those that took over {FLUSH_SECONDS:.0f} s at the end were given up"
                self._tell(f"{self.bucket.source.text}: {what}")
        finally:
            await kill_until_none(lambda: [child.pid] if is_same_process(child.pid, child.start_ticks) else [])
            await child.close()
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
            await asyncio.to_thread(self._tell_problems)

    async def _check(self, program: str) -> None:
        """A look at a place in the bucket where nothing is: cheap, whatever lies there."""
        nowhere = f"{self.bucket.remote}/.cellburst-{os.urandom(8).hex()}"
        child = await Child.start(
            [program, "lsf", nowhere, *_QUIET, *_HARDLY_TRIED], environment=self.bucket.environment()
        )
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                code = await child.wait()
            text = await child.output()
        except TimeoutError:
            code, text = -1, f"no answer within {CHECK_SECONDS:.0f} s"
        finally:
            await kill_until_none(lambda: [child.pid] if is_same_process(child.pid, child.start_ticks) else [])
            await child.wait()
            await child.close()
        if code:
            raise self._refusal(text)

    def _refusal(self, text: str) -> Exception:
        source, why = self.bucket.source, self.bucket.clean(_reason(text))
        who = f"secret {source.secret}" if source.secret else "no secret"
        if "directory not found" in why or "NoSuchBucket" in why:
            return error(
                ErrorCode.NOT_FOUND, f"there is no bucket {source.name!r} at {source.endpoint_url or 'Amazon S3'}",
                next="check the bucket's name and its endpoint",
            )  # fmt: skip
        if any(word in why for word in _REFUSALS):
            return error(
                ErrorCode.FORBIDDEN, f"bucket {source.text} is refused with {who}: {why}",
                next="check the secret's keys, and that they may list the bucket",
            )  # fmt: skip
        return error(
            ErrorCode.UNAVAILABLE, f"bucket {source.text} cannot be reached: {why}",
            next="check its endpoint, and that the worker's machine reaches it",
        )  # fmt: skip

    async def _mounted(self, child: Child) -> None:
        try:
            async with asyncio.timeout(MOUNT_SECONDS):
                while not await asyncio.to_thread(mounts_below, self.place):
                    if child.ended:
                        break
                    await asyncio.sleep(0.02)
                else:
                    return
        except TimeoutError:
            pass
        text = await child.output()
        with contextlib.suppress(OSError):
            text = text or self._log.read_text(errors="replace")
        raise error(
            ErrorCode.START_FAILED, f"bucket {self.bucket.source.text} cannot be shown: {self.bucket.clean(_reason(text))}",
            next="see that this machine has /dev/fuse and the package fuse3",
        )  # fmt: skip

    async def _read_log(self, child: Child) -> None:
        ended = asyncio.ensure_future(child.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=1.0)
                await asyncio.to_thread(self._tell_problems)
            if self._child is child:  # nobody takes it away: it ended by itself
                self._tell_ended(ended.result())
        finally:
            ended.cancel()

    def _tell_ended(self, code: int) -> None:
        """Once: what showed the bucket is gone, and with it what it had not uploaded."""
        if not self._said_ended:
            self._said_ended = True
            how = f"signal {-code}" if code < 0 else f"code {code}"
            self._tell(
                f"{self.bucket.source.text}: uploads may be lost: what showed the bucket ended ({how}); a restart of the"
                " session shows it again"
            )

    def _tell_problems(self) -> None:
        """Each problem once. Blocks."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > _MOST_LOG_BYTES:
                os.truncate(self._log, 0)
            for line in self._log.read_text(errors="replace").splitlines():
                try:
                    one = msgspec.json.decode(line, type=_Line)
                except msgspec.MsgspecError:
                    continue
                what = f"{one.object}: {one.msg}" if one.object else one.msg
                if what not in self._told and one.object and len(self._told) < 20:
                    self._told.add(what)
                    self._tell(f"{self.bucket.source.text}: {self.bucket.clean(what)[:300]}")


def _check_host(endpoint: str) -> None:
    """Where an endpoint really is. Raises RequestError (FORBIDDEN) for where this machine's own credentials may be had."""
    if not endpoint:
        return
    host = urlsplit(endpoint).hostname or ""
    try:
        addresses = {found[4][0] for found in socket.getaddrinfo(host, None)}
    except OSError as why:
        raise error(
            ErrorCode.UNAVAILABLE, f"the bucket's endpoint {host} is not known to the worker's machine: {why}",
            next="check its name",
        ) from None  # fmt: skip
    if any(is_refused_address(str(address).partition("%")[0]) for address in addresses):
        raise error(ErrorCode.FORBIDDEN, f"{host} is no place of buckets: that address is the machine's own affair")


def _reason(text: str) -> str:
    """The last thing rclone said, without where its code said it."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(line, type=_Line).msg.strip().replace("\n", " ")[:400]
    return lines[-1][:400] if lines else "it ended without a word"
