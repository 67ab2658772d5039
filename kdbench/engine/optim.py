"""timm's optimisers and schedules for one cell, inside mmengine's optimiser wrapper."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from kdbench.engine.precision import Precision
from kdbench.errors import KdbenchError
from kdbench.suite.recipe import OptimizerSpec, Recipe

#: Optimisers of torch that have a fused kernel for the CPU and CUDA: one call per step instead of several per tensor.
_FUSED = ("sgd", "momentum", "nesterov", "adam", "adamw")


class QuietOptimWrapper(OptimWrapper):
    """mmengine's wrapper without its reading of the gradient norm, which would wait for the device in every step.

    With a scaler (float16) losses are scaled before the backward pass, and a step whose gradients overflowed is left out.

    Args:
        rate: on the device, from where fused steps take the learning rate, so that a CUDA graph of one follows the schedule;
            None leaves it the number in the optimiser's groups.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip_grad: dict[str, Any] | None,
        precision: Precision | None,
        rate: Tensor | None = None,
    ) -> None:
        super().__init__(optimizer, clip_grad=clip_grad)
        self.scaler = None if precision is None else precision.scaler
        self.rate = rate
        self._sent: float | None = None

    def send_rate(self) -> None:
        """Bring the learning rate of the schedule, the same for all groups, to the device, where it is not there yet."""
        value = self.optimizer.param_groups[0]["lr"]
        if self.rate is not None and value != self._sent:
            self.rate.fill_(value)
            self._sent = value

    def backward(self, loss: Tensor, **options: Any) -> None:
        super().backward(loss if self.scaler is None else self.scaler.scale(loss), **options)

    def step(self, **options: Any) -> None:
        with self._rate_on_device():
            if self.scaler is None:
                super().step(**options)
                return
            if self.clip_grad_kwargs:
                self.scaler.unscale_(self.optimizer)
                self._clip_grad()
            self.scaler.step(self.optimizer, **options)
            self.scaler.update()

    @contextmanager
    def _rate_on_device(self) -> Iterator[None]:
        """Schedules, checkpoints and histories have the number; only the optimiser's kernels see the tensor."""
        self.send_rate()
        groups = [] if self.rate is None else self.optimizer.param_groups
        numbers = [{name: group[name] for name in ("lr", "capturable") if name in group} for group in groups]
        for group, number in zip(groups, numbers, strict=True):
            group.update({**dict.fromkeys(number, True), "lr": self.rate})
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group.update(number)

    def _clip_grad(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.clip_func(parameters, **self.clip_grad_kwargs)


def build_optim_wrapper(
    student: nn.Module, method: nn.Module, recipe: Recipe, precision: Precision | None = None
) -> QuietOptimWrapper:
    """Optimiser over the student's and the method's trainable parameters.

    Biases and other one-dimensional parameters are exempt from weight decay, and so is what the net itself names in
    ``no_weight_decay()`` (position embeddings, class tokens), unless the recipe says otherwise.

    Raises:
        KdbenchError: for an optimiser that timm does not know.
    """
    spec = recipe.optimizer
    groups = [*_groups(student, spec, spec.honour_no_weight_decay), *_groups(method, spec, False)]
    options: dict[str, Any] = {"betas": spec.betas} if spec.betas else {}
    fused = spec.name.lower() in _FUSED
    if fused:
        options["fused"] = True
    try:
        optimizer = create_optimizer_v2(
            groups, opt=spec.name, lr=spec.lr, weight_decay=spec.weight_decay, momentum=spec.momentum, **options
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise KdbenchError(f"optimizer {spec.name!r}: {error}") from error
    clip = {"max_norm": recipe.clip_norm} if recipe.clip_norm else None
    rate = None
    if fused and precision is not None and precision.device.type == "cuda":
        rate = torch.zeros((), dtype=torch.float32, device=precision.device)  # as the kernels read it
    return QuietOptimWrapper(optimizer, clip, precision, rate)


def _groups(module: nn.Module, spec: OptimizerSpec, honour: bool) -> Iterable[dict[str, Any]]:
    exempt = module.no_weight_decay() if honour and hasattr(module, "no_weight_decay") else ()  # type: ignore[operator]
    if not spec.decay_biases_and_norms:
        return param_groups_weight_decay(module, spec.weight_decay, no_weight_decay_list=exempt)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(0.0 if name in exempt else spec.weight_decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


class Schedule:
    """timm's schedule of one cell's learning rate; a function of the epoch and step alone, so it has no state to save.

    Args:
        optimizer: whose rate it sets.
        recipe: with the schedule.
        steps_per_epoch: length of an epoch.
        phases: epochs at which the whole schedule, shortened to the phase, begins anew, with a fresh state of the optimiser.

    Raises:
        KdbenchError: for phases that do not increase within the training.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int, phases: Sequence[int] = ()
    ) -> None:
        self.limits = [0, *phases, recipe.epochs]
        if phases and self.limits != sorted(set(self.limits)):
            raise KdbenchError(f"phases = {tuple(phases)}: must be increasing epochs between 1 and {recipe.epochs - 1}")
        self.optimizer = optimizer
        spec = recipe.schedule
        self.per_step = spec.per == "step"
        self.steps_per_epoch = steps_per_epoch
        self._schedule: Any = None
        if spec.name != "constant":
            self._schedule, _ = create_scheduler_v2(
                optimizer,
                sched=spec.name,
                num_epochs=recipe.epochs,
                warmup_epochs=spec.warmup_epochs,
                warmup_lr=spec.warmup_lr,
                min_lr=spec.min_lr,
                decay_epochs=spec.decay_epochs,
                decay_rate=spec.decay_rate,
                decay_milestones=list(spec.milestones),
                step_on_epochs=not self.per_step,
                updates_per_epoch=steps_per_epoch,
            )

    def set(self, epoch: int, step: int) -> None:
        """Set the learning rate for ``step`` of ``epoch`` (both from 0), and clear the optimiser where a phase begins."""
        if step == 0 and epoch in self.limits[1:-1]:
            self.optimizer.state.clear()
            for group in self.optimizer.param_groups:  # where some of timm's count their steps
                group.pop("step", None)
        if self._schedule is None:
            return
        position = bisect.bisect_right(self.limits, epoch, hi=len(self.limits) - 1)
        begin, end = self.limits[position - 1], self.limits[position]
        epochs = self.limits[-1]
        if self.per_step:
            done = (epoch - begin) * self.steps_per_epoch + step
            self._schedule.step_update(done * epochs // (end - begin))
        elif step == 0:
            self._schedule.step((epoch - begin) * epochs // (end - begin))
