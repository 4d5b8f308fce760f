"""Which random generators the copies of one snapshot share, and must not: told while modules are imported for a template.

    global ones (`random`, `numpy.random`, `torch`)      seeded anew in each copy. A module that seeds one of them while it is
                                                         imported is not for a template (`Seeds`): that is part of what its
                                                         import does, for those sessions alone that import it
    a module's own (`Random()`, `default_rng()`, …)      seeded anew in each copy if it was made without a seed; one with a
                                                         seed is what its maker wanted, in every process

How one was made cannot be seen afterwards, so the functions that make and seed are watched while the imports run. Standard
library only; numpy and torch are looked at when they are imported. `restore.reseed` calls `reseed` here.
"""

from __future__ import annotations

import builtins
import gc
import random
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

_SEEDS = (("random", "seed"), ("numpy.random", "seed"), ("torch", "manual_seed"), ("torch.random", "manual_seed"))
_ENTROPY = "numpy.random.bit_generator"  # its `randbits` is asked once for each generator that is made without a seed

_NONE = object()


class Seeds(Exception):
    """A module must not be in a snapshot of which copies are made. `name` is what was to be imported."""

    def __init__(self, name: str, library: str) -> None:
        super().__init__(f"{name} seeds the random generator of {library} when it is imported")
        self.name = name


class Watched:
    """What was seen of the imports of this process."""

    def __init__(self) -> None:
        self.seeded: set[str] = set()  # of "random", "numpy", "torch"
        self.of_random: dict[int, weakref.ref[random.Random]] = {}
        self.of_numpy: list[Any] = []  # BitGenerator, which has no weak references


_watched = Watched()


def look(name: str) -> None:
    """After `name` was imported. Raises Seeds."""
    if _watched.seeded:
        raise Seeds(name, min(_watched.seeded))


def reseed() -> list[str]:
    """Seed modules' own generators anew that were made without a seed. Returns a line for each that could not be."""
    notes = []
    for found in _watched.of_random.values():
        one = found()
        if one is not None:
            try:
                _reseed_random(one)
            except Exception as why:
                notes.append(_line(one, why))
    for bits in _watched.of_numpy:
        try:
            sequence = _sequence(bits)
            sequence.__init__()  # new entropy; what is spawned of it later is new as well
            bits.state = type(bits)(sequence).state
        except Exception as why:
            notes.append(_line(bits, why))
    return notes


def _reseed_random(one: random.Random) -> None:
    """By its own `seed` first, which may keep more than the generator's state: with the None that `Random()` gives it."""
    try:
        one.seed(None)
    except Exception:
        random.Random.seed(one)


def _line(one: Any, why: Exception) -> str:
    return f"a {type(one).__name__} could not be re-seeded ({type(why).__name__}: {why}); its draws may repeat"[:500]


@contextmanager
def watching() -> Iterator[None]:
    """Watch what is made and seeded while modules are imported. Whoever keeps one of the functions that are put in place
    meanwhile (`from random import seed`) has what it stands for, for good."""
    watch = _Watch()
    watch.begin()
    try:
        yield
    finally:
        watch.end()


class _Watch:
    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []  # owner, name, what stood there, what stands there
        self._done: set[str] = set()
        self._entropy: set[int] = set()
        self._active = True

    def begin(self) -> None:
        real_seed = random.Random.seed

        def seed(one: random.Random, *arguments: Any, **options: Any) -> None:
            real_seed(one, *arguments, **options)
            if self._active:
                self._note(one, _is_unseeded(arguments, options))

        self._put(random.Random, "seed", seed)
        real_import = builtins.__import__

        def import_(*arguments: Any, **options: Any) -> Any:
            found = real_import(*arguments, **options)
            if self._active:
                self._look()
            return found

        self._put(builtins, "__import__", import_)
        self._look()

    def end(self) -> None:
        self._look()
        self._active = False
        for owner, name, before, ours in reversed(self._undo):
            if vars(owner).get(name) is not ours:
                continue  # somebody put another one over it, which calls this one
            if before is _NONE:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        if self._entropy:
            known = {id(bits) for bits in _watched.of_numpy}
            generator: Any = getattr(sys.modules.get(_ENTROPY), "BitGenerator", None)
            for one in gc.get_objects():
                # By its type: what stands for another object may do anything when it is asked for its class.
                if issubclass(type(one), generator) and id(one) not in known and self._is_of_entropy(one):
                    _watched.of_numpy.append(one)

    def _note(self, one: random.Random, unseeded: bool) -> None:
        if unseeded:
            try:
                _watched.of_random[id(one)] = weakref.ref(one)
            except TypeError:  # a class of its own with __slots__
                pass
        else:
            _watched.of_random.pop(id(one), None)

    def _look(self) -> None:
        """Watch what has been imported by now. Called after every import, also inside of others."""
        for module_name, name in _SEEDS:
            if module_name not in self._done:
                self._watch_seed(module_name, name)
        if _ENTROPY not in self._done:
            module = _whole(_ENTROPY)
            draw = getattr(module, "randbits", None)
            if module is not None:
                self._done.add(_ENTROPY)
            if draw is not None:

                def randbits(count: int) -> int:
                    drawn: int = draw(count)
                    self._entropy.add(drawn)
                    return drawn

                self._put(module, "randbits", randbits)

    def _watch_seed(self, module_name: str, name: str) -> None:
        module = _whole(module_name)
        real: Optional[Callable[..., Any]] = getattr(module, name, None)
        if module is None or real is None:
            return
        self._done.add(module_name)
        library = module_name.partition(".")[0]

        def seed(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            if self._active and not _is_unseeded(arguments, options):
                _watched.seeded.add(library)
            elif self._active:
                _watched.seeded.discard(library)
            return result

        self._put(module, name, seed)

    def _put(self, owner: Any, name: str, new: Any) -> None:
        self._undo.append((owner, name, vars(owner).get(name, _NONE), new))
        setattr(owner, name, new)

    def _is_of_entropy(self, bits: Any) -> bool:
        return getattr(_sequence(bits), "entropy", None) in self._entropy


def _is_unseeded(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    given = arguments[0] if arguments else options.get("a", options.get("seed", options.get("x")))
    return given is None


def _sequence(bits: Any) -> Any:
    """What a numpy generator was seeded by; None where it was an old-style seed."""
    return getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)


def _whole(name: str) -> Any:
    """A module that is imported, None while it is not or only half."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if getattr(spec, "_initializing", False) else module
