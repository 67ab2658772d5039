"""One cell in training: a student with its method, optimiser, schedule, random stream, meters and history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from kdbench.data.views import EvaluationView
from kdbench.engine.checkpoint import checkpoint_epoch, checkpoint_path, save_checkpoint
from kdbench.engine.optim import Schedule, build_optim_wrapper
from kdbench.errors import KdbenchError
from kdbench.method import Batch, Method, NetInfo, Outputs, Task
from kdbench.nets.checkpoints import load_body
from kdbench.nets.spec import NetSpec
from kdbench.nets.tapped import TappedNet
from kdbench.recipe import Recipe
from kdbench.seeding import RandomStream, seed_for
from kdbench.store import CellFolder

_OPTIONAL_OUTPUTS = ("stages", "embedding", "classifier", "stagewise", "strong")


class NonFiniteLossError(KdbenchError):
    """A loss term that became NaN or infinite."""


@dataclass(frozen=True)
class Trainee:
    """What is trained: a net by a method under a recipe, with the names that its random numbers depend on.

    ``net_seed`` fixes the initial weights, ``method_seed`` those of the method and everything drawn during training.
    """

    key: str
    name: str
    net: NetSpec
    recipe: Recipe
    method: type[Method]
    hyperparameters: Mapping[str, Any]
    net_seed: int
    method_seed: int
    folder: CellFolder
    view: EvaluationView = field(default_factory=EvaluationView)
    #: Weights from which a teacher is fine-tuned; its classifier is new.
    start: Path | None = None


class CellTrainer(nn.Module):
    """A trainee in memory.

    Args:
        trainee: what to train.
        task: the classification task.
        teacher: of the pair; None when a teacher itself is trained.
        steps_per_epoch: length of an epoch.
        device: where it is trained.
    """

    def __init__(
        self, trainee: Trainee, task: Task, teacher: NetInfo | None, steps_per_epoch: int, device: torch.device
    ) -> None:
        super().__init__()
        self.trainee = trainee
        self.task = task
        self.steps_per_epoch = steps_per_epoch
        with torch.random.fork_rng():
            torch.manual_seed(trainee.net_seed)
            self.student = TappedNet(trainee.net, task.num_classes, trainee.name)
            if trainee.start is not None:
                load_body(self.student, trainee.start)
            self.student.to(device)
            info = self.student.describe()
            torch.manual_seed(seed_for(trainee.method_seed, "init"))
            self.method = trainee.method(info, teacher or info, task, **trainee.hyperparameters).to(device)
        self.optim_wrapper: OptimWrapper = build_optim_wrapper(self.student.net, self.method, trainee.recipe)
        self.schedule = Schedule(self.optim_wrapper.optimizer, trainee.recipe, steps_per_epoch)
        self.stream = RandomStream(seed_for(trainee.method_seed, "stream"), device)
        self.meters = Meters(device)
        self.history: list[dict[str, float]] = []
        self.last_logits: Tensor | None = None
        self.epoch = 0
        self.step_seconds = 0.0
        self.steps_timed = 0
        self.train_seconds = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """What the method taps, of either net."""
        return frozenset(self.method.needs)

    def step(
        self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None, wrapper: OptimWrapper
    ) -> None:
        """One step on a batch; ``images`` are already preprocessed for the student.

        Raises:
            Exception: whatever the method raises.
        """
        student = self.student.run(images, self.needs)
        if strong is not None and "strong" in self.needs:
            student.strong = self.student.run(strong, self.needs)
        terms = self.method(batch, student, _only(teacher, self.needs))
        wrapper.update_params(self._total(terms))
        self.meters.add(terms)

    def _total(self, terms: Any) -> Tensor:
        if not isinstance(terms, dict) or not terms:
            raise KdbenchError(f"forward must return a dict of named loss terms, got {type(terms).__name__}")
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.numel() != 1:
                shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise KdbenchError(f"loss term {name!r} must be a scalar tensor, got {shape}")
        return torch.stack([term.reshape(()) for term in terms.values()]).sum()

    def end_epoch(self) -> dict[str, float]:
        """Read the meters of the epoch: mean of each term over its steps.

        Raises:
            NonFiniteLossError: naming term, epoch and step of the first value that was NaN or infinite.
        """
        means = self.meters.read(self.epoch)
        self.epoch += 1
        return means

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, C) of raw images in [0, 1], in the method's way of inference."""
        with self.stream.active():
            return self.method.predict(self.student(images, self.method.predict_needs))

    def save(self) -> None:
        """Write a checkpoint after the current epoch; the one before is kept until ``drop_old_checkpoints``."""
        save_checkpoint(
            checkpoint_path(self.trainee.folder, self.epoch),
            {
                "epoch": self.epoch,
                "student": self.student.net.state_dict(),
                "method": self.method.state_dict(),
                "optimizer": self.optim_wrapper.optimizer.state_dict(),
                "stream": self.stream.state_dict(),
                "history": self.history,
                "clock": [self.step_seconds, self.steps_timed, self.train_seconds],
            },
        )

    def drop_old_checkpoints(self) -> None:
        for path in self.trainee.folder.checkpoints():
            if checkpoint_epoch(path) < self.epoch:
                path.unlink(missing_ok=True)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``save`` wrote."""
        self.student.net.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optim_wrapper.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        self.history = list(state["history"])
        self.epoch = state["epoch"]
        self.step_seconds, self.steps_timed, self.train_seconds = state["clock"]

    def extra_parameters(self) -> int:
        """Number of trainable parameters of the method."""
        return sum(parameter.numel() for parameter in self.method.parameters() if parameter.requires_grad)


class Meters:
    """Sums of loss terms on the device, read once an epoch: a step never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self.names: tuple[str, ...] = ()
        self.steps = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step."""
        names = tuple(terms)
        if not self.steps:
            self.names = names
            self._sums = torch.zeros(len(names), device=self.device)
            self._first_bad = torch.full((len(names),), -1, device=self.device)
        elif names != self.names:
            raise KdbenchError(f"loss terms changed within an epoch: {', '.join(self.names)}, then {', '.join(names)}")
        values = torch.stack([term.detach().float().reshape(()) for term in terms.values()])
        self._sums += values
        self._first_bad = torch.where((self._first_bad < 0) & ~values.isfinite(), self.steps, self._first_bad)
        self.steps += 1

    def read(self, epoch: int) -> dict[str, float]:
        """Means since the last reading; see ``CellTrainer.end_epoch``."""
        steps, names = self.steps, self.names
        if not steps:
            return {}
        sums, first_bad = self._sums.tolist(), self._first_bad.tolist()
        self._clear()
        for name, step in sorted(zip(names, first_bad, strict=True), key=lambda item: item[1]):
            if step >= 0:
                raise NonFiniteLossError(f"loss term {name!r} is not finite at epoch {epoch + 1}, step {step + 1}")
        return {name: total / steps for name, total in zip(names, sums, strict=True)}


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


def _only(outputs: Outputs | None, needs: frozenset[str]) -> Any:
    """Hide what a method did not ask for: a cell must not depend on what its company asked for."""
    if outputs is None:
        return None
    hidden: dict[str, Any] = {name: None for name in _OPTIONAL_OUTPUTS if name not in needs}
    if "stagewise" not in needs:
        hidden["images"] = None
    shown = replace(outputs, **hidden)
    if shown.strong is not None:
        shown.strong = _only(shown.strong, needs - {"strong"})
    return shown
