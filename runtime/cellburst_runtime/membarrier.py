"""Keeps `runsc` from waiting for the kernel each time it starts.

runsc registers for the `membarrier` system call whenever one of its processes starts. With several threads, as each Go
program has, the kernel lets that wait for a whole RCU grace period: about 10 ms of the 19 that such a start takes
(measured), and a restore starts five, most of them one after the other. Without the call runsc goes on without: then
`membarrier` does not exist inside its sandboxes either, and what uses it there has another way.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import struct
import sys

log = logging.getLogger(__name__)

# Numbers of the kernel's interface: `AUDIT_ARCH_*` of <linux/audit.h>, system calls of each machine.
_MACHINES = {"x86_64": (0xC000003E, 317, 324), "aarch64": (0xC00000B7, 277, 283)}  # its name, seccomp, membarrier
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4  # no slower branches for all that runs under the filter: it is no sandbox
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_NUMBER_AT, _MACHINE_AT = 0, 4  # in `struct seccomp_data`
_RETURN_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def hide_membarrier() -> bool:
    """From now on `membarrier` is ENOSYS for the calling thread, the threads and processes it starts, and theirs.

    Returns whether that holds: only on Linux, on the machines known here, as root (others could do it only by giving up
    set-uid programs). It cannot be undone, so a program calls it for itself at its start, before other threads are there.
    """
    known = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or known is None or os.geteuid() != 0:
        return False
    machine, seccomp, membarrier = known
    steps = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_IF_EQUAL, 0, 3, machine),  # another machine's calls (32 bit) have other numbers: allowed
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_EQUAL, 0, 1, membarrier),
        (_RETURN, 0, 0, _RETURN_ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, program) != 0:
        log.info("starts of runsc wait for membarrier: %s", os.strerror(ctypes.get_errno()))
        return False
    return True
