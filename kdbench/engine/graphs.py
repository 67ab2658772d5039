"""CUDA graphs of a cohort: the teacher's forward pass and each cell's step, recorded once and replayed with one launch each.

A step of a small net is hundreds of kernels, each of which takes the host longer to launch than the device to run. A graph
holds the same kernels in the same order, on the same tensors, so a replay gives the numbers of the step that was recorded.

After a few steps as they are, the batch is copied to tensors that stay (``CohortGraphs``), the teacher's outputs for it become
tensors that stay too, and every cell's step (``StepGraph``) is recorded: student, method, backward pass, clipping, optimiser,
meters, averaged weights. Recording executes nothing. What Python does in a step is done once, so a cell whose Python does
something else in each step is not recorded: that is looked for in the step before, and the cell's log says what was found.
A method that reads ``batch.epoch`` is recorded anew in every epoch.

Read from top to bottom: what is looked for, ``StepGraph``, ``CohortGraphs``; ``recorder.py`` has all that CUDA is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batches import TrainingBatch
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer
from kdbench.engine.faults import is_device_lost, sentence
from kdbench.engine.recorder import Recorder
from kdbench.engine.shared import Shared
from kdbench.method import Batch
from kdbench.plugins.hooks import HookEntry
from kdbench.seeding import RandomStream

#: Steps that run as they are first: libraries set themselves up, optimisers and methods make their state. PyTorch's number.
WARM_STEPS = 3


@dataclass
class WatchedBatch(Batch):
    """A batch that remembers which of the numbers were read that change from step to step."""

    read: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        if name in ("epoch", "progress"):
            self.read.add(name)
        return super().__getattribute__(name)


def watched(batch: Batch) -> WatchedBatch:
    return WatchedBatch(**{each.name: getattr(batch, each.name) for each in fields(Batch)})


def python_state(cell: CellTrainer) -> dict[str, object]:
    """What Python holds of a student, a method and an optimiser: numbers and texts by value, tensors and the rest by identity."""
    state: dict[str, object] = {"optimizer.state": _identity(dict(cell.optim_wrapper.optimizer.state))}
    for prefix, module in (("student", cell.student), ("method", cell.method)):
        for path, part in module.named_modules():
            for name, value in vars(part).items():
                state[".".join(filter(None, (prefix, path, name)))] = _identity(value)
    return state


def _identity(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if isinstance(value, Mapping):
        return tuple((_identity(name), _identity(item)) for name, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return tuple(_identity(item) for item in value)
    return id(value)


class StepGraph:
    """The steps of one cell: as they are, then replayed.

    Args:
        cell: the cell; ``captured`` tells what became of it.
        recorder: of the cell's stream.
        say: is told why its steps are not recorded, once.
        warm_steps: that run as they are first.
    """

    def __init__(
        self, cell: CellTrainer, recorder: Recorder, say: Callable[[CellTrainer, str], None], warm_steps: int
    ) -> None:
        self.cell = cell
        self.recorder = recorder
        self.say = say
        self.warm_steps = warm_steps
        self.warm = 0
        self.replay: Callable[[], None] | None = None
        #: The last one, until there is another: torch wants a graph in a pool of memory that it records into again.
        self._outdated: Callable[[], None] | None = None
        #: The only epoch that the recording is good for; None for all.
        self.epoch: int | None = None

    def step(self, shared: Shared) -> None:
        """One step on a batch.

        Raises:
            Exception: whatever the method raises.
        """
        epoch = shared.data.batch.epoch
        if not self._is_for(epoch):
            # A step as it is, then anew; before it one for what a new phase has cleared.
            self._outdated, self.replay, self.epoch = self.replay, None, None
            self.warm = self.warm_steps - (2 if epoch in self.cell.method.phases else 1)
        recordable = shared.static and not isinstance(self.cell.captured, str)
        if recordable and self.replay is None and self.warm >= self.warm_steps:
            self._record(shared)
        replay = self.replay if self.replays(shared) else None
        if replay is not None:
            self.cell.optim_wrapper.send_rate()
            replay()
            self.cell.meters.steps += 1
            return
        self.warm += 1
        if isinstance(self.cell.captured, str) or self.warm != self.warm_steps:
            self._run(shared.data.batch, shared)
            return
        batch, before, host = watched(shared.data.batch), python_state(self.cell), self.cell.stream.host_position()
        with self.recorder.waits() as waits:
            self._run(batch, shared)
        if waits:
            self._leave(f"waits for the device ({waits[0]})")
        elif self.cell.stream.host_position() != host:
            self._leave("draws random numbers on the host")
        else:
            self._look(batch, before)

    def replays(self, shared: Shared) -> bool:
        """Whether a step on this batch is a replay."""
        return shared.static and self.replay is not None and self._is_for(shared.data.batch.epoch)

    def _is_for(self, epoch: int) -> bool:
        return self.epoch in (None, epoch)

    def _run(self, batch: Batch, shared: Shared) -> None:
        self.cell.step(batch, *shared.given_to(self.cell))

    def _record(self, shared: Shared) -> None:
        cell, batch, before = self.cell, watched(shared.data.batch), python_state(self.cell)
        cell.optim_wrapper.send_rate()
        given = shared.given_to(cell)
        try:
            with torch.enable_grad():
                replay = self.recorder.record(lambda: cell.compute(batch, *given), cell.stream)
        except Exception as error:  # nothing was executed: the step is still to be done
            if is_device_lost(error):
                raise
            cell.optim_wrapper.zero_grad()
            self._leave(f"cannot be recorded ({sentence(error)})")
            return
        if self._look(batch, before):
            self.replay, self._outdated, self.cell.captured = replay, None, True
            self.epoch = shared.data.batch.epoch if "epoch" in batch.read or cell.method.phases else None

    def _look(self, batch: WatchedBatch, before: dict[str, object]) -> bool:
        """Whether a step left Python as it was, and read nothing that is another number in every step."""
        after = python_state(self.cell)
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if changed:
            self._leave(f"changes {', '.join(changed[:3])} in Python")
        elif "progress" in batch.read:
            self._leave("reads batch.progress")
        else:
            return True
        return False

    def _leave(self, reason: str) -> None:
        self.cell.captured = reason
        self.say(self.cell, f"{self.cell.key} runs without CUDA graphs: its step {reason}")


class CohortGraphs:
    """The graphs of a cohort, and the batch that they all read.

    Args:
        cells: the cells.
        recorder: of what the cells share.
        say: is told why something is not recorded.
        warm_steps: that run as they are first.
        lanes: recorders of streams on which steps run side by side, cells in turn; none: all run on that of ``recorder``.
    """

    def __init__(
        self,
        cells: Sequence[CellTrainer],
        recorder: Recorder,
        say: Callable[[CellTrainer, str], None],
        warm_steps: int = WARM_STEPS,
        lanes: Sequence[Recorder] = (),
    ) -> None:
        self.cells = cells
        self.recorder = recorder
        self.say = say
        self.lanes = lanes
        self._steps = {
            cell.key: StepGraph(cell, lane, say, warm_steps)
            for cell, lane in zip(cells, itertools.cycle(lanes or [recorder]), strict=False)
        }
        self.warm_steps = warm_steps
        self._warm = 0
        self._left = False
        self._batch: TrainingBatch | None = None
        self._shared: Shared | None = None
        self._replay: Callable[[], None] | None = None

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Everything of a cohort's step happens inside."""
        return self.recorder.active(self.lanes)

    @contextlib.contextmanager
    def on_stream_of(self, cell: CellTrainer, shared: Shared) -> Iterator[None]:
        """A cell's step happens inside. Only replays run side by side: any other step may write to what is shared."""
        step = self._steps[cell.key]
        if not self.lanes:
            yield
        elif step.replays(shared):
            with step.recorder.after(self.recorder):
                yield
        else:
            for lane in self.lanes:
                self.recorder.join(lane)
            try:
                with step.recorder.after(self.recorder):
                    yield
            finally:
                self.recorder.join(step.recorder)

    def step(self, cell: CellTrainer, shared: Shared) -> None:
        """One step of a cell; see ``StepGraph.step``."""
        self._steps[cell.key].step(shared)

    def share(self, data: TrainingBatch, make: Callable[[TrainingBatch], Shared]) -> Shared:
        """What the cells share in a step: ``make(data)``, as it is or replayed on the batch that stays."""
        if self._replay is None and not self._left:
            self._warm += 1
            if self._warm == self.warm_steps:
                with self.recorder.waits() as waits:
                    shared = make(data)
                if waits:
                    self._leave(f"waits for the device ({waits[0]})")
                return shared
            if self._warm > self.warm_steps:
                self._record(data, make)
        if self._replay is None or self._batch is None or self._shared is None or _shapes(data) != _shapes(self._batch):
            return make(data)
        for kept, value in zip(_tensors(self._batch), _tensors(data), strict=True):
            kept.copy_(value)
        self._replay()
        self._shared.renew(_on(self._batch, data))
        return self._shared

    def _record(self, data: TrainingBatch, make: Callable[[TrainingBatch], Shared]) -> None:
        strong = None if data.strong is None else data.strong.clone()
        targets = None if data.batch.targets is None else data.batch.targets.clone()
        batch = replace(data.batch, labels=data.batch.labels.clone(), index=data.batch.index.clone(), targets=targets)
        stays = self._batch = TrainingBatch(data.images.clone(), batch, strong)
        made: list[Shared] = []
        try:
            # A frozen net in eval mode draws nothing.
            stream = RandomStream(0, self.cells[0].stream.device, host=False)
            self._replay = self.recorder.record(lambda: made.append(make(stays)), stream)
        except Exception as error:
            if is_device_lost(error):
                raise
            self._leave(f"cannot be recorded ({sentence(error)})")
            return
        (self._shared,) = made
        self._shared.static = True

    def _leave(self, reason: str) -> None:
        self._left = True
        for cell in self.cells:
            cell.captured = f"the teacher {reason}"
            self.say(cell, f"{cell.key} runs without CUDA graphs: its teacher's forward pass {reason}")


def why_not(cells: Sequence[CellTrainer], hooks: Sequence[HookEntry] = ()) -> str | None:
    """Why the steps of a cohort are not recorded, whatever its methods do, or None."""
    cell = cells[0]
    if any(not hook.observes for hook in hooks):
        return "hooks may change what a step does"
    if parallel.world_size() > 1:
        return "several processes train it"
    if cell.forward_pass.compile:
        return "with --compile steps run as they are"
    if cell.precision.scaler is not None:
        return "float16 scales its losses"
    if cell.micro_batches > 1:
        return "batches are trained in parts"
    if cell.optim_wrapper.rate is None:
        return f"optimizer {cell.spec.recipe.optimizer.name!r} has no fused kernel"
    return None


def graphs_of(
    cells: Sequence[CellTrainer],
    device: torch.device,
    say: Callable[[CellTrainer, str], None],
    hooks: Sequence[HookEntry] = (),
    streams: int = 1,
) -> CohortGraphs | None:
    """The graphs of a cohort; None on a CPU, and where there can be none, which ``say`` is told.

    Args:
        cells: the cells.
        device: where they are trained.
        say: is told why something is not recorded.
        hooks: of the run.
        streams: on how many of them replays run side by side.
    """
    if device.type != "cuda":
        return None
    reason = why_not(cells, hooks)
    if reason is None:
        streams = min(streams, len(cells))
        if streams == 1:
            return CohortGraphs(cells, Recorder(device), say)
        for cell in cells:
            cell.tuning["cuda_streams"] = streams
        lanes = [Recorder(device, number) for number in range(1, streams + 1)]
        return CohortGraphs(cells, Recorder(device), say, lanes=lanes)
    for cell in cells:
        cell.captured = reason
        say(cell, f"{cell.key} runs without CUDA graphs: {reason}")
    return None


def _on(batch: TrainingBatch, data: TrainingBatch) -> TrainingBatch:
    """The tensors of ``batch`` with the numbers of ``data``."""
    own = batch.batch
    return replace(batch, batch=replace(data.batch, labels=own.labels, index=own.index, targets=own.targets))


def _tensors(data: TrainingBatch) -> list[Tensor]:
    values = (data.images, data.strong, data.batch.labels, data.batch.index, data.batch.targets)
    return [value for value in values if value is not None]


def _shapes(data: TrainingBatch) -> list[object]:
    shapes = [(value.shape, value.dtype) for value in _tensors(data)]
    return [*shapes, data.strong is None, data.batch.targets is None]
