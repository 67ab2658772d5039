"""Seeds that are derived from names, and random streams that are kept apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_for(*parts: object) -> int:
    """Hash names and numbers into a seed in [0, 2^63).

    The same parts give the same seed on every machine and in every process, and no two uses share a stream
    unless they name the same parts.
    """
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def may_draw_on_host(method: type) -> bool:
    """Whether a method may draw from NumPy's or ``random``'s global generator: a plugin, but none of the suite."""
    return not method.__module__.startswith("kdbench.methods.")


class RandomStream:
    """The global random state of torch (CPU and one CUDA device), NumPy and ``random`` that belongs to one cell.

    Code that draws from the global generators (dropout, drop path, a method's sampling) does so inside ``active()``.
    What it draws then depends on the cell alone, not on its company.

    Args:
        seed: of all generators.
        device: of the cell. On CUDA the global generator takes the stream's state by reference, as CUDA graphs need it.
        host: also swap NumPy's and ``random``'s state, which costs several times what torch's does.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", host: bool = True) -> None:
        self.device = torch.device(device)
        self.host = host
        with untouched_randomness():
            seed_everything(seed)
            self._state = _position(True)
        self._cuda: torch.Generator | None = None
        if self.device.type == "cuda":
            torch.cuda.init()
            self._cuda = torch.Generator(self.device).manual_seed(seed)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swap the stream in, and back out when the block ends, also when it raises."""
        outside = _position(self.host)
        _move_to(self._state[: len(outside)])
        if self._cuda is not None:
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            shared = torch.cuda.default_generators[index]
            outside_cuda = shared.graphsafe_get_state()
            shared.graphsafe_set_state(self._cuda)
        try:
            yield
        finally:
            position = _position(self.host)
            self._state = (*position, *self._state[len(position) :])
            _move_to(outside)
            if self._cuda is not None:
                shared.graphsafe_set_state(outside_cuda)

    def renew(self) -> None:
        """Go on from the same position with a CUDA generator of its own: a recording that failed may hold the old one."""
        if self._cuda is not None:
            position = self._cuda.get_state()
            self._cuda = torch.Generator(self.device)
            self._cuda.set_state(position)

    def host_position(self) -> tuple[object, ...]:
        """Where the generators stand that are not the device's: equal before and after a step that draws on the device only."""
        torch_state, (_, keys, *numpy_rest), python_state = self._state
        own = () if self.device.type == "cpu" else (torch_state.numpy().tobytes(),)
        return (*own, keys.tobytes(), *numpy_rest, python_state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in types that load with ``weights_only=True``."""
        torch_state, numpy_state, python_state = self._state
        name, keys, position, has_gauss, cached = numpy_state
        return {
            "torch": torch_state,
            "cuda": None if self._cuda is None else self._cuda.get_state(),
            "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
            "python": [python_state[0], list(python_state[1]), python_state[2]],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        name, keys, position, has_gauss, cached = state["numpy"]
        version, words, gauss = state["python"]
        self._state = (
            state["torch"],
            (name, keys.numpy().astype(np.uint32), position, has_gauss, cached),
            (version, tuple(words), gauss),
        )
        if self._cuda is not None and state["cuda"] is not None:
            self._cuda.set_state(state["cuda"])


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put the global random state of torch's CPU generator, NumPy and ``random`` back when the block ends."""
    outside = _position(True)
    try:
        yield
    finally:
        _move_to(outside)


def seed_everything(seed: int) -> None:
    """Seed what transforms and plugins draw from: ``random``, NumPy's global generator and torch's CPU generator (not CUDA's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


def _position(host: bool) -> tuple[Any, ...]:
    """The state of torch's CPU generator, and of NumPy's and ``random``'s."""
    torch_state = torch.get_rng_state()
    return (torch_state, np.random.get_state(), random.getstate()) if host else (torch_state,)  # noqa: NPY002


def _move_to(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])
