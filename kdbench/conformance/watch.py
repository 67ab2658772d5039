"""What a method must not change: the process's global state, the nets, and its inputs."""

from __future__ import annotations

import operator
import os
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from kdbench.conformance.bench import Sample
from kdbench.method import Outputs

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_READS = frozenset({
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "nonzero", "masked_select",
})  # fmt: skip


def _keep_device(device: torch.device) -> None:
    if torch.get_default_device() != device:  # setting even the usual one would slow down every call
        torch.set_default_device(None if device.type == "cpu" else device)


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is what is watched
    return (name, np.asarray(keys).tobytes(), *rest)


#: Global state that a method must not change: name for the author -> how it is read, and how it is restored (None: it is not).
_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any] | None]] = {
    "grad mode (torch.set_grad_enabled)": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype (torch.set_default_dtype)": (torch.get_default_dtype, torch.set_default_dtype),
    "default device (torch.set_default_device)": (torch.get_default_device, _keep_device),
    "number of threads (torch.set_num_threads)": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda before: torch.use_deterministic_algorithms(before[0], warn_only=before[1]),
    ),
    "cuDNN's flags": (
        lambda: (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        lambda before: cudnn.set_flags(_enabled=before[0], _benchmark=before[1], _deterministic=before[2]),
    ),
    "precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "autocast": (partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "warning filters": (
        lambda: tuple(warnings.filters),
        lambda before: operator.setitem(warnings.filters, slice(None), before),  # type: ignore[call-overload]
    ),
    "NumPy's error handling": (lambda: tuple(np.geterr().items()), lambda before: np.seterr(**dict(before))),
    "working folder": (os.getcwd, os.chdir),
    "environment": (lambda: tuple(sorted(os.environ.items())), None),
    "random's generator": (random.getstate, random.setstate),
    "NumPy's generator": (_numpy_state, None),
    "torch's generator": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda before: torch.set_rng_state(torch.frombuffer(bytearray(before), dtype=torch.uint8)),
    ),
}


def global_state() -> dict[str, Any]:
    """Global state that a method must not change: name for the author -> value."""
    return {name: read() for name, (read, _) in _STATE.items()}


def changes(before: dict[str, Any]) -> list[str]:
    """Names of the differences from ``before``."""
    return [name for name, value in global_state().items() if value != before[name]]


def restore(before: dict[str, Any]) -> None:
    """Undo a method's changes, so that they do not count against the next one."""
    for name, (_, write) in _STATE.items():
        if write is not None:
            write(before[name])


def marks(net: nn.Module) -> dict[str, Any]:
    """Properties of a net that a method must not change, besides its values: name for the author -> value."""
    modules = list(net.modules())
    return {
        "hooks": sum(len(getattr(module, name)) for module in modules for name in _HOOKS),
        "train or eval mode": [module.training for module in modules],
        "requires_grad of its parameters": [parameter.requires_grad for parameter in net.parameters()],
        "modules": len(modules),
    }


class Given:
    """The inputs of a method, remembered by version and by value."""

    def __init__(self, data: Sample, student: Outputs, teacher: Outputs | None) -> None:
        self.tensors = dict(_tensors(data, student, teacher))
        self._versions = {name: value._version for name, value in self.tensors.items()}
        self._values = {name: value.detach().clone() for name, value in self.tensors.items()}

    def written(self) -> list[str]:
        """Names of the tensors that were written to."""
        return [
            name
            for name, value in self.tensors.items()
            if value._version != self._versions[name] or not torch.equal(value.detach(), self._values[name])
        ]


def _tensors(data: Sample, student: Outputs, teacher: Outputs | None) -> Iterator[tuple[str, Tensor]]:
    for name in ("labels", "index", "targets"):
        value = getattr(data.batch, name)
        if value is not None:
            yield f"batch.{name}", value
    # The student's images are shared with the other cells of a cohort, its outputs are its own.
    if student.images is not None:
        yield "student.images", student.images
    for prefix, outputs in (("teacher", teacher), ("teacher.strong", teacher.strong if teacher else None)):
        if outputs is None:
            continue
        for name in ("logits", "embedding", "images"):
            value = getattr(outputs, name)
            if value is not None:
                yield f"{prefix}.{name}", value
        for number, stage in enumerate(outputs.stages or ()):
            yield f"{prefix}.stages[{number}].map", stage.map
            if stage.class_tokens is not None:
                yield f"{prefix}.stages[{number}].class_tokens", stage.class_tokens
        for number, attention in enumerate(outputs.attention or ()):
            for name in ("queries", "keys", "values"):
                yield f"{prefix}.attention[{number}].{name}", getattr(attention, name)


class Reads(TorchFunctionMode):
    """Notes every call that would wait for a GPU or move a tensor: ``found`` holds their names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS:
            self.found.add(name.strip("_"))
        elif name == "__getitem__" and _is_mask(args[1]):
            self.found.add("indexing with a mask")
        elif name == "cuda" or (
            name == "to" and any(isinstance(arg, (torch.device, str)) for arg in (*args[1:], *(kwargs or {}).values()))
        ):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool and part.ndim for part in parts)
