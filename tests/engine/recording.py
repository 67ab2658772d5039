"""A stand-in for a CUDA graph on a CPU: operations are recorded with the tensors they used, and done again on the same tensors.

Like a capture, recording changes no tensor that was there before and draws no random number, Python runs once, and an operation
that would wait for the device is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

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


@dataclass
class Piece:
    """What a stream was given: replays, or an operation in a block of its own; ``after`` are the pieces that it waited for."""

    stream: TapeRecorder
    after: frozenset[int]
    replayed: bool = False


class TapeRecorder:
    """What ``kdbench.engine.graphs`` asks of CUDA, on a CPU. ``recorded`` counts recordings, ``replayed`` replays.

    Args:
        pieces: of all streams of a device, in the order in which they were given.
    """

    refused: Collection[str] = WAITING
    #: The stream that work is given to.
    current: TapeRecorder | None = None

    def __init__(self, pieces: list[Piece] | None = None) -> None:
        self.recorded = self.replayed = 0
        self.pieces = [] if pieces is None else pieces
        self._seen: set[int] = set()

    @contextlib.contextmanager
    def active(self, lanes: Sequence[TapeRecorder] = ()) -> Iterator[None]:
        with self._current():
            yield
        for lane in lanes:
            self.join(lane)

    @contextlib.contextmanager
    def after(self, other: TapeRecorder) -> Iterator[None]:
        self.join(other)
        with self._current():
            yield

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        before, TapeRecorder.current = TapeRecorder.current, self
        try:
            yield
        finally:
            TapeRecorder.current = before

    def join(self, other: TapeRecorder) -> None:
        self._seen |= other._seen

    def gives(self, replayed: bool) -> None:
        """Something is given to the current stream."""
        stream = TapeRecorder.current
        assert stream is not None
        stream.pieces.append(Piece(stream, frozenset(stream._seen), replayed))
        stream._seen.add(len(stream.pieces) - 1)

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
