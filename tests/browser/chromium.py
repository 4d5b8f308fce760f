"""Chromium without a look at this machine's network interfaces: `python chromium.py PROGRAM ARGUMENTS…` becomes that program.

Chromium is told by the kernel (netlink) of each interface and address that comes or goes, and lets all requests fail that wait for a
connection then (net::ERR_NETWORK_CHANGED), those to loopback too. Containers come and go with interfaces of theirs, here and in other
tests, while pages load. A seccomp filter refuses it netlink sockets; it then takes the network for one that stays as it is.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # AUDIT_ARCH_*, the number of socket()
AF_NETLINK, EAFNOSUPPORT = 16, 97
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | EAFNOSUPPORT
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K


def script(folder: Path, program: str) -> Path:
    """An executable in `folder` that starts the program so, for who takes a path only."""
    made = folder / "chromium"
    made.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "{program}" "$@"\n')
    made.chmod(0o700)
    return made


def refuse_netlink() -> None:
    """For this process and all that it starts. Does nothing on another processor."""
    if platform.machine() not in ARCHITECTURES:
        return
    architecture, socket_call = ARCHITECTURES[platform.machine()]
    steps = [
        (LOAD, 0, 0, 4), (EQUAL, 0, 5, architecture), (LOAD, 0, 0, 0), (EQUAL, 0, 3, socket_call), (LOAD, 0, 0, 16),
        (EQUAL, 0, 1, AF_NETLINK), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW),
    ]  # fmt: skip  # offsets into struct seccomp_data: its number, its architecture, its first argument
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filter = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, MODE_FILTER, filter, 0, 0)):
        arguments = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_ulong(a) for a in call[1:]]
        if libc.prctl(ctypes.c_int(call[0]), *arguments):
            raise OSError(ctypes.get_errno(), "no seccomp filter")


if __name__ == "__main__":
    refuse_netlink()
    os.execv(sys.argv[1], sys.argv[1:])
