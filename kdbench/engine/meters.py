"""What is counted while a cell is trained, without waiting for the device: loss terms, and seconds of its steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.engine import parallel
from kdbench.errors import KdbenchError


class NonFiniteLossError(KdbenchError):
    """A loss term that became NaN or infinite."""


#: Steps in a row with a term that is not finite, after which a cell fails whose optimiser skips such steps (float16).
PATIENCE = 20


class Meters:
    """Sums of loss terms on the device, read once an epoch: a step never waits for the device.

    ``add`` works on the device alone, on tensors that stay the same while the terms do; who calls it counts ``steps``.

    Args:
        device: of the terms.
        patience: steps in a row in which a term may be infinite before it counts as such; until then those are left out.
    """

    def __init__(self, device: torch.device, patience: int = 1) -> None:
        self.device = device
        self.patience = patience
        self.names: tuple[str, ...] = ()
        self.steps = 0
        self._allot(())

    def _allot(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._last = torch.zeros(len(names), dtype=torch.float32, device=self.device)
        self._sums = torch.zeros(len(names), device=self.device)
        self._first_bad = torch.full((len(names),), -1, device=self.device)
        self._step = torch.full((), self.steps, device=self.device)
        self._run = torch.zeros(len(names), dtype=torch.int64, device=self.device)
        self._left_out = torch.zeros(len(names), device=self.device)

    def _clear(self) -> None:
        self.steps = 0
        self._sums.zero_()
        self._first_bad.fill_(-1)
        self._step.zero_()
        self._run.zero_()
        self._left_out.zero_()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step."""
        names = tuple(terms)
        if names != self.names:
            if self.steps:
                raise KdbenchError(
                    f"loss terms changed within an epoch: {', '.join(self.names)}, then {', '.join(names)}"
                )
            self._allot(names)
        values = torch.stack([term.detach().float().reshape(()) for term in terms.values()], out=self._last)
        bad, first = ~values.isfinite(), self._step
        if self.patience > 1:
            self._left_out += bad
            self._run.copy_(torch.where(bad, self._run + 1, 0))
            values = torch.where(bad, 0.0, values)
            bad, first = self._run >= self.patience, self._step - (self.patience - 1)
        self._sums += values
        self._first_bad.copy_(torch.where((self._first_bad < 0) & bad, first, self._first_bad))
        self._step += 1

    @property
    def last(self) -> dict[str, Tensor]:
        """The terms of the last step, each a scalar on the device."""
        return dict(zip(self.names, self._last.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last reading; empty when there was nothing."""
        if not self.steps:
            return {}
        state = {"names": list(self.names), "steps": self.steps, "sums": self._sums, "first_bad": self._first_bad}
        return state if self.patience == 1 else {**state, "run": self._run, "left_out": self._left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._clear()
        if state:
            self.steps = state["steps"]
            self._allot(tuple(state["names"]))
            self._sums.copy_(state["sums"])
            self._first_bad.copy_(state["first_bad"])
            if "run" in state:
                self._run.copy_(state["run"])
                self._left_out.copy_(state["left_out"])

    def read(self, epoch: int) -> dict[str, float]:
        """Means of the terms over the steps since the last reading.

        Raises:
            NonFiniteLossError: naming term, epoch and step of the first value that was NaN or infinite.
        """
        steps, names = self.steps, self.names
        if not steps:
            return {}
        parallel.average(self._sums, self._left_out)
        left_out = self._left_out.tolist()
        sums, first_bad = self._sums.tolist(), parallel.first_step(self._first_bad).tolist()
        self._clear()
        for name, step in sorted(zip(names, first_bad, strict=True), key=lambda item: item[1]):
            if step >= 0:
                raise NonFiniteLossError(f"loss term {name!r} is not finite at epoch {epoch + 1}, step {step + 1}")
        return {name: total / max(1, steps - left) for name, total, left in zip(names, sums, left_out, strict=True)}


class Stopwatch:
    """Seconds that a cell's step takes: the clock on a CPU, events in the stream (read once an epoch) on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._count = 0

    def __enter__(self) -> Stopwatch:
        if self.cuda:
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            self._begun = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self.cuda:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self._events.append((self._start, end))
        else:
            self._seconds += time.perf_counter() - self._begun
        self._count += 1

    def read(self) -> tuple[float, int]:
        """Seconds and steps since the last reading."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds = sum(start.elapsed_time(end) for start, end in self._events) / 1000
        seconds, count = self._seconds, self._count
        self._events, self._seconds, self._count = [], 0.0, 0
        return seconds, count
