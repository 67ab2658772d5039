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


class RandomStream:
    """The global random state of torch (CPU and one CUDA device), NumPy and ``random`` that belongs to one cell.

    Code that draws from the global generators (dropout, drop path, a method's sampling) does so inside ``active()``.
    What it draws then depends on the cell alone, not on its company.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        outside = self._capture()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global generator is what plugins may draw from
        random.seed(seed)
        self._state = self._capture()
        self._restore(outside)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swap the stream in, and back out when the block ends, also when it raises."""
        outside = self._capture()
        self._restore(self._state)
        try:
            yield
        finally:
            self._state = self._capture()
            self._restore(outside)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in types that load with ``weights_only=True``."""
        torch_state, cuda_state, numpy_state, python_state = self._state
        name, keys, position, has_gauss, cached = numpy_state
        return {
            "torch": torch_state,
            "cuda": cuda_state,
            "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
            "python": [python_state[0], list(python_state[1]), python_state[2]],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        name, keys, position, has_gauss, cached = state["numpy"]
        version, words, gauss = state["python"]
        cuda = state["cuda"]
        if self.device.type == "cuda" and cuda is None:
            cuda = self._state[1]
        self._state = (
            state["torch"],
            cuda if self.device.type == "cuda" else None,
            (name, keys.numpy().astype(np.uint32), position, has_gauss, cached),
            (version, tuple(words), gauss),
        )

    def _capture(self) -> tuple[Any, ...]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()  # noqa: NPY002

    def _restore(self, state: tuple[Any, ...]) -> None:
        torch_state, cuda_state, numpy_state, python_state = state
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, self.device)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
