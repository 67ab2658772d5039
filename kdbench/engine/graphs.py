"""CUDA graphs of a cohort: the teacher's forward pass and each cell's step, recorded once and replayed with one launch each.

A step of a small net is hundreds of kernels, each of which takes the host longer to launch than the device to run. A graph
holds the same kernels in the same order, on the same tensors, so a replay gives the numbers of the step that was recorded.

After a few steps as they are, the batch is copied to tensors that stay (``CohortGraphs``), the teacher's outputs for it become
tensors that stay too, and every cell's step (``StepGraph``) is recorded: student, method, backward pass, clipping, optimiser,
meters, averaged weights. Recording executes nothing. What Python does in a step is done once, so a cell whose Python does
something else in each step is not recorded: that is looked for in the step before, and the cell's log says what was found.
A method that reads ``batch.epoch`` is recorded anew in every epoch.

Read from top to bottom: ``Recorder`` (all that CUDA is asked for), what is looked for, ``StepGraph``, ``CohortGraphs``.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batches import TrainingBatch
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer
from kdbench.engine.faults import is_device_lost, sentence
from kdbench.engine.shared import Shared
from kdbench.method import Batch
from kdbench.plugins.hooks import HookEntry
from kdbench.seeding import RandomStream

#: Steps that run as they are first: libraries set themselves up, optimisers and methods make their state. PyTorch's number.
WARM_STEPS = 3

#: Recordings that CUDA declared invalid: the allocators of some versions of torch keep their address.
_invalid: list[Any] = []


class Recorder:
    """Records on a CUDA device.

    Everything runs on one stream, not the default one: nodes of autograd remember the stream that they were made on, and a
    recording must not touch another. All graphs share their memory: they run one after the other, and what outlives one (the
    teacher's outputs) is held while the others are recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.stream = _stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Everything of a cohort's step happens inside."""
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outside.wait_stream(self.stream)

    @contextlib.contextmanager
    def waits(self) -> Iterator[list[str]]:
        """Places in the block that wait for the device, listed when it ends."""
        found, before = list[str](), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in caught:
            if "synchronizing CUDA operation" in str(warning.message):
                found.append(f"{Path(warning.filename).name}:{warning.lineno}")
            elif "Synchronization debug mode" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def record(self, work: Callable[[], object], stream: RandomStream) -> Callable[[], None]:
        """Record what ``work`` would do, drawing from ``stream``; what is returned does it."""
        graph = torch.cuda.CUDAGraph()
        failure: Exception | None = None
        # Threads that load data may use CUDA meanwhile.
        capture = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        try:
            with stream.active(), capture:
                try:
                    work()
                except Exception as error:
                    failure = error
        except Exception as error:  # CUDA has declared the recording invalid, and torch has not put away its part of it
            failure = failure or error
            _invalid.append(graph)
            with contextlib.suppress(Exception):
                graph.reset()
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
            stream.renew()
        if failure is not None:
            raise failure
        return graph.replay


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all cohorts of a process: cuBLAS keeps memory for each stream that it has seen."""
    return torch.cuda.Stream(device)


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
        recorder: of the cohort.
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
        #: The only epoch that the recording is good for; None for all.
        self.epoch: int | None = None

    def step(self, shared: Shared) -> None:
        """One step on a batch.

        Raises:
            Exception: whatever the method raises.
        """
        epoch = shared.data.batch.epoch
        if self.epoch not in (None, epoch):
            # A step as it is, then anew; before it one for what a new phase has cleared.
            self.replay, self.epoch = None, None
            self.warm = self.warm_steps - (2 if epoch in self.cell.method.phases else 1)
        recordable = shared.static and not isinstance(self.cell.captured, str)
        if recordable and self.replay is None and self.warm >= self.warm_steps:
            self._record(shared)
        if shared.static and self.replay is not None:
            self.cell.optim_wrapper.send_rate()
            self.replay()
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
            self.replay, self.cell.captured = replay, True
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
        recorder: what records.
        say: is told why something is not recorded.
        warm_steps: that run as they are first.
    """

    def __init__(
        self,
        cells: Sequence[CellTrainer],
        recorder: Recorder,
        say: Callable[[CellTrainer, str], None],
        warm_steps: int = WARM_STEPS,
    ) -> None:
        self.cells = cells
        self.recorder = recorder
        self.say = say
        self._steps = {cell.key: StepGraph(cell, recorder, say, warm_steps) for cell in cells}
        self.warm_steps = warm_steps
        self._warm = 0
        self._left = False
        self._batch: TrainingBatch | None = None
        self._shared: Shared | None = None
        self._replay: Callable[[], None] | None = None

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
) -> CohortGraphs | None:
    """The graphs of a cohort; None on a CPU, and where there can be none, which ``say`` is told."""
    if device.type != "cuda":
        return None
    reason = why_not(cells, hooks)
    if reason is None:
        return CohortGraphs(cells, Recorder(device), say)
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
