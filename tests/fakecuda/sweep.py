"""All methods on nine kinds of pair, forward and backward, with fake tensors on a CUDA device: shapes, types and devices without a GPU.

    LD_PRELOAD=./libcuda.so.1 LD_LIBRARY_PATH=. python -m tests.fakecuda.sweep PRECISION [METHOD ...] [--plugin FILE]

Nets and methods are built on the CPU; then their parameters and buffers become fake CUDA tensors. What a method keeps elsewhere
stays a CPU tensor, which fake tensors refuse. A tensor on the wrong device, a value read on the host, a size that depends on
values, and types that do not go together under autocast raise. ``libcuda.so.1`` is ``driver.c``, compiled.
"""

from __future__ import annotations

import argparse
import json
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdbench.conformance.bench import BATCH, CLASSES, EPOCHS, PAIRS, Pair, Trial
from kdbench.conformance.building import reason_against
from kdbench.engine.cell import Distiller
from kdbench.engine.precision import Precision
from kdbench.method import Batch, Method, Outputs
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.registry import catalog

DEVICE = torch.device("cuda:0")


def main() -> None:
    """Print JSON: how many pairs ran, how many do not suit their method, and what went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("precision", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("methods", nargs="*")
    options = parser.parse_args()
    torch.cuda.is_bf16_supported = lambda *_: True  # type: ignore[assignment]  # autocast asks
    entries = catalog(options.plugin)
    ran, unsuited, wrong = 0, 0, {}
    for name in options.methods or entries:
        cls = entries[name].load()
        for pair in PAIRS:
            if reason_against(cls, pair) is not None:
                unsuited += 1
                continue
            try:
                run(cls, pair, options.precision)
                ran += 1
            except Exception as error:
                wrong[f"{name}, {pair}"] = f"{type(error).__name__}: {error} {_place(error)}"
    print(json.dumps({"ran": ran, "unsuited": unsuited, "wrong": wrong}, indent=1))


def run(cls: type[Method], pair: Pair, precision: str) -> None:
    """A step with hard and one with mixed labels, and a prediction."""
    trial = Trial(cls, pair)
    context = Precision(precision, DEVICE)
    with FakeTensorMode():
        for module in (trial.student, trial.teacher, trial.method):
            to_cuda(module)
        distiller = Distiller(trial.student, trial.method)

        def outputs(net: TappedNet, images: Tensor, strong: Tensor | None) -> Outputs:
            found = net.run(net.preprocess(images), trial.needs)
            if strong is not None:
                found.strong = net.run(net.preprocess(strong), trial.needs)
            return found

        for targets in (None, torch.rand(BATCH, CLASSES, device=DEVICE)):
            labels, indices = torch.zeros(2, BATCH, dtype=torch.int64, device=DEVICE).unbind()
            images, strong = torch.rand(2, BATCH, 3, 32, 32, device=DEVICE).unbind()
            second = strong if "strong" in trial.needs else None
            with torch.no_grad(), context.autocast():
                taught = outputs(trial.teacher, images, second) if cls.uses_teacher else None
            with context.autocast():
                terms = distiller(
                    Batch(labels, indices, targets, 0.5, EPOCHS // 2),
                    trial.student.preprocess(images),
                    None if second is None else trial.student.preprocess(second),
                    taught,
                )
            torch.stack([term.reshape(()) for term in terms.values()]).sum().backward()
            same = {f"term {name}": (term, (DEVICE, torch.float32)) for name, term in terms.items()}
            for name, value in distiller.named_parameters():
                if value.grad is not None:
                    same[f"the gradient of {name}"] = value.grad, (value.device, value.dtype)
            for name, (value, expected) in same.items():
                if (value.device, value.dtype) != expected:
                    raise TypeError(f"{name} is {value.dtype} on {value.device}")
        distiller.eval()
        with torch.no_grad(), context.autocast():
            logits = trial.method.predict(trial.student(images, trial.method.predict_needs))
        if logits.device != DEVICE or logits.shape != (BATCH, CLASSES):
            raise TypeError(f"predictions are {tuple(logits.shape)} on {logits.device}")


def to_cuda(module: nn.Module) -> None:
    """Replace parameters and buffers by fake ones."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, value in kept.items():
                if value is not None:
                    fake: Any = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
                    is_parameter = kept is part._parameters
                    kept[name] = nn.Parameter(fake, requires_grad=value.requires_grad) if is_parameter else fake


def _place(error: Exception) -> str:
    """Where in the project an error began."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fakecuda" not in frame.filename]
    ours = [frame for frame in frames if "/methods/" in frame.filename or "/kdbench/" in frame.filename]
    return f"({ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno})" if ours else ""


if __name__ == "__main__":
    main()
