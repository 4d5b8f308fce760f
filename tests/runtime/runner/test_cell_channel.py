"""The executor's sender: whole messages whatever interrupts it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cellburst_runner import wire
from cellburst_runner.cell_channel import Sender


@pytest.fixture
def pair() -> Iterator[tuple[Sender, socket.socket]]:
    ours, theirs = socket.socketpair()
    sender = Sender(ours)
    yield sender, theirs
    for connection in (ours, theirs, sender.from_children, sender._to_parent):
        connection.close()


def _read(connection: socket.socket, count: int, into: list[dict[str, Any]]) -> None:
    decoder = wire.Decoder()
    while len(into) < count:
        for body in decoder.feed(connection.recv(1 << 16)):
            into.append(wire.decode_head(wire.split(body)[0]))


def test_threads_send_whole_messages(pair: tuple[Sender, socket.socket]) -> None:
    sender, other = pair
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read, args=(other, 400, found))
    reader.start()
    threads = [
        threading.Thread(
            target=lambda n=n: [sender.send({"t": "x", "n": n, "i": i}, [bytes(5000)]) for i in range(100)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in [*threads, reader]:
        thread.join(20)
    assert len(found) == 400
    for n in range(4):
        assert [f["i"] for f in found if f["n"] == n] == list(range(100))


def test_an_interrupt_in_the_middle_tears_nothing(pair: tuple[Sender, socket.socket]) -> None:
    """Signals raise out of the sending thread hundreds of times; every message that arrives is whole and in order."""
    sender, other = pair
    found: list[dict[str, Any]] = []
    reader = threading.Thread(target=_read, args=(other, 301, found))
    stop = threading.Event()

    def shoot() -> None:
        while not stop.wait(0.0007):
            os.kill(os.getpid(), signal.SIGUSR1)

    class Interrupt(BaseException):
        pass

    def handler(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    shooter = threading.Thread(target=shoot)
    interrupted = 0
    try:
        reader.start()
        shooter.start()
        for number in range(300):
            try:
                sender.post({"t": "x", "i": number}, [bytes(300_000)])
                sender.drain()
            except Interrupt:
                interrupted += 1
    finally:
        while True:
            with contextlib.suppress(Interrupt):
                stop.set()
                shooter.join(10)
                signal.signal(signal.SIGUSR1, before)
                break
    while len(found) < 301 and reader.is_alive():
        sender.send({"t": "x", "i": -1})
        reader.join(0.05)
    numbers = [f["i"] for f in found if f["i"] >= 0]
    assert interrupted > 0 and numbers == sorted(set(numbers))
    assert len(numbers) >= 300 - interrupted  # one that was interrupted before it was queued is the caller's to repeat


def test_a_send_from_inside_a_send_does_not_lock_up(pair: tuple[Sender, socket.socket]) -> None:
    sender, other = pair
    found: list[dict[str, Any]] = []

    class Closes:
        def __del__(self) -> None:
            sender.send({"t": "inner"})

    def collecting(data: Any) -> int:
        Closes()
        gc.collect()
        return other_send(data)

    class Spy:
        send = staticmethod(collecting)

    other_send = sender._socket.send
    sender._socket = Spy()  # type: ignore[assignment]  # a collection in the middle of send, made certain
    count = iter(range(1))
    original = collecting

    def once(data: Any) -> int:
        return original(data) if next(count, None) is not None else other_send(data)

    Spy.send = staticmethod(once)
    sender.send({"t": "outer"})
    _read(other, 2, found)
    assert [f["t"] for f in found] == ["outer", "inner"]


def test_a_forked_child_sends_through_its_parent(pair: tuple[Sender, socket.socket]) -> None:
    sender, other = pair
    pid = os.fork()
    if pid == 0:
        sender.send({"t": "child"}, [bytes(100_000)])
        os._exit(0)
    packets = 0
    other.settimeout(10)
    while packets < 4:
        sender.relay_child()
        packets += 1
    os.waitpid(pid, 0)
    decoder = wire.Decoder()
    bodies: list[bytes] = []
    while not bodies:
        bodies = list(decoder.feed(other.recv(1 << 18)))
    head, buffers = wire.split(bodies[0])
    assert wire.decode_head(head) == {"t": "child"} and len(buffers[0]) == 100_000
