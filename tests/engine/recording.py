"""A stand-in for a CUDA graph on a CPU: operations are recorded with the tensors they used, and done again on the same tensors.

Like a capture, recording changes no tensor that was there before and draws no random number, Python runs once, and an operation
that would wait for the device is refused.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kdbench.engine.recorder import Recorder
from kdbench.seeding import RandomStream

from .test_no_waiting import WAITING

#: Change running statistics that their schema does not call changed.
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update")


def _alias(value: Tensor) -> Tensor:
    """The same memory, with a shape of its own: operations in place may change that of a tensor."""
    return torch.ops.aten.alias(value)  # type: ignore[no-any-return]


class Tape(TorchDispatchMode):
    """Records the operations of the block, but for ``refused`` ones."""

    def __init__(self, refused: Collection[str] = WAITING) -> None:
        super().__init__()
        self.refused = refused
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._own: dict[int, Tensor] = {}  # made in the block, by the address of their storage
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket.__name__
        if name in self.refused:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for value in self._written(func, name, args, kwargs):
            place = value.untyped_storage().data_ptr()
            if place not in self._own and place not in self._before:
                whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
                self._before[place] = (whole, whole.clone())
        kept = tree_map_only(Tensor, _alias, (args, kwargs))
        found = func(*args, **kwargs)
        places = {value.untyped_storage().data_ptr() for value in given}
        made = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
        new = [value for value in made if value.untyped_storage().data_ptr() not in places]
        self._own.update((value.untyped_storage().data_ptr(), value) for value in new)
        if new or func._schema.is_mutable or name in _BATCH_NORMS:  # what is left are views
            self.calls.append((func, *kept, [_alias(value) for value in new] if len(new) == len(made) else []))
        return found

    @staticmethod
    def _written(func: Any, name: str, args: Any, kwargs: Any) -> list[Tensor]:
        written = list(args[3:5]) if name in _BATCH_NORMS else []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written.append(args[position] if position < len(args) else kwargs.get(argument.name))
        return [value for value in tree_leaves(written) if isinstance(value, Tensor)]

    def undo(self) -> None:
        with torch.no_grad():
            for whole, before in self._before.values():
                whole.copy_(before)

    def play(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                found = [value for value in tree_leaves(func(*args, **kwargs)) if isinstance(value, Tensor)]
                for kept, value in zip(made, found, strict=False):
                    kept.copy_(value)


class Stream:
    """A CUDA stream: what it was given, and what it waited for."""

    #: The one that work is given to; the default stream where nothing else is said.
    current: Stream

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def wait_stream(self, other: Stream) -> None:
        self.seen |= other.seen


@contextlib.contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    """``torch.cuda.stream``."""
    before, Stream.current = Stream.current, chosen
    try:
        yield
    finally:
        Stream.current = before


Stream.current = Stream()
_numbers = itertools.count()


@dataclass
class Piece:
    """What a stream was given: a replay, or a step as it is; ``after`` are the numbers of all that it waited for."""

    number: int
    stream: Stream
    after: frozenset[int]
    replayed: bool


class TapeRecorder(Recorder):
    """Records on a CPU. ``recorded`` counts recordings, ``replayed`` replays.

    Args:
        pieces: of all streams of a device, in the order in which they were given.
    """

    refused: Collection[str] = WAITING

    def __init__(self, pieces: list[Piece] | None = None) -> None:
        self.recorded = self.replayed = 0
        self.pieces = [] if pieces is None else pieces
        self.device = torch.device("cuda", 0)
        self.stream: Any = Stream()

    @contextlib.contextmanager
    def active(self, lanes: Sequence[Recorder] = ()) -> Iterator[None]:
        with self._on_cpu(), super().active(lanes):
            yield

    @contextlib.contextmanager
    def after(self, other: Recorder) -> Iterator[None]:
        with self._on_cpu(), super().after(other):
            yield

    def _on_cpu(self) -> Any:
        return mock.patch.multiple(torch.cuda, stream=stream, current_stream=lambda device: Stream.current)

    def gives(self, replayed: bool) -> None:
        """Something is given to the current stream."""
        number, chosen = next(_numbers), Stream.current
        self.pieces.append(Piece(number, chosen, frozenset(chosen.seen), replayed))
        chosen.seen.add(number)

    @contextlib.contextmanager
    def waits(self) -> Iterator[list[str]]:
        found: list[str] = []

        class Waits(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func._overloadpacket.__name__ in WAITING:
                    found.append(func._overloadpacket.__name__)
                return func(*args, **(kwargs or {}))

        with Waits():
            yield found

    def record(self, work: Callable[[], object], stream: RandomStream) -> Callable[[], None]:
        tape = Tape(self.refused)
        with stream.active():
            position = torch.get_rng_state()
            try:
                with tape:
                    work()
            finally:
                tape.undo()
                torch.set_rng_state(position)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            self.gives(replayed=True)
            with stream.active():
                tape.play()

        return replay
