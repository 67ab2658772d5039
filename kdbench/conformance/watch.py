"""What a method must not change: the process's global state, the nets, and its inputs."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
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


def global_state() -> dict[str, Any]:
    """Global state that a method must not change: name for the author -> value."""
    return {
        "grad mode (torch.set_grad_enabled)": torch.is_grad_enabled(),
        "default dtype (torch.set_default_dtype)": torch.get_default_dtype(),
        "default device (torch.set_default_device)": torch.get_default_device(),
        "number of threads (torch.set_num_threads)": torch.get_num_threads(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cuDNN's flags": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "precision of matrix products": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly detection": torch.is_anomaly_enabled(),
        "warning filters": tuple(warnings.filters),
        "NumPy's error handling": tuple(np.geterr().items()),
        "working folder": os.getcwd(),
        "environment": tuple(sorted(os.environ.items())),
        "random's generator": random.getstate(),
        "NumPy's generator": _numpy_state(),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
    }


def changes(before: dict[str, Any]) -> list[str]:
    """Names of the differences from ``before``."""
    now = global_state()
    return [name for name, value in before.items() if now[name] != value]


def restore(before: dict[str, Any]) -> None:
    """Undo a method's changes, so that they do not count against the next one."""
    torch.set_grad_enabled(before["grad mode (torch.set_grad_enabled)"])
    torch.set_default_dtype(before["default dtype (torch.set_default_dtype)"])
    device = before["default device (torch.set_default_device)"]
    if torch.get_default_device() != device:  # setting even the usual one would slow down every call
        torch.set_default_device(None if device.type == "cpu" else device)
    torch.set_num_threads(before["number of threads (torch.set_num_threads)"])
    enabled, warn_only = before["deterministic algorithms"]
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before["cuDNN's flags"]
    torch.set_float32_matmul_precision(before["precision of matrix products"])
    torch.set_autocast_enabled("cpu", before["autocast"])
    torch.autograd.set_detect_anomaly(before["anomaly detection"])
    warnings.filters[:] = before["warning filters"]  # type: ignore[index]
    np.seterr(**dict(before["NumPy's error handling"]))
    os.chdir(before["working folder"])
    random.setstate(before["random's generator"])
    torch.set_rng_state(torch.frombuffer(bytearray(before["torch's generator"]), dtype=torch.uint8))


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global generator is what is watched
    return (name, np.asarray(keys).tobytes(), *rest)


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
