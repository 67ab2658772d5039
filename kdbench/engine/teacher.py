"""Teachers: prepared once and kept by the hash of everything they depend on, then loaded, checked and frozen."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.matrix.teachers import TeacherPlan
from kdbench.nets.tapped import TappedNet, state_hash
from kdbench.opening import read_file
from kdbench.store.files import write_bytes
from kdbench.store.folders import Store
from kdbench.store.result import TeacherResult


def save_weights(module: nn.Module, path: Path) -> str:
    """Write a module's weights (safetensors: data that cannot run code) and return their checksum."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    write_bytes(path, safetensors.torch.save(tensors))
    return state_hash(module)


def load_teacher(
    plan: TeacherPlan, store: Store, num_classes: int, device: torch.device
) -> tuple[TappedNet, TeacherResult]:
    """Load a prepared teacher, frozen: eval mode, no gradients.

    Returns:
        the net and its result.

    Raises:
        KdbenchError: if it has not been prepared, or its weights are not those of its result.
    """
    result = store.result_of_teacher(plan)
    folder = store.teacher_folder(plan)
    if result is None:
        raise KdbenchError(f"teacher {plan.name} has not been prepared yet: {folder.weights} is missing")
    net = TappedNet(plan.net, num_classes, plan.name)
    try:
        net.net.load_state_dict(safetensors.torch.load(read_file(folder.weights, None)))
    except Exception as error:
        raise KdbenchError(
            f"weights of teacher {plan.name} in {folder.path} are damaged ({type(error).__name__}); the next kdbench run makes them anew"
        ) from None
    if state_hash(net.net) != result.checksum:
        raise KdbenchError(
            f"weights of teacher {plan.name} in {folder.path} do not match their checksum; the next kdbench run makes them anew"
        )
    return freeze(net.to(device)), result


def check_finite(name: str, logits: Tensor) -> None:
    """Refuse a teacher whose logits (N, C) are not finite for every image.

    Raises:
        KdbenchError: with their number.
    """
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise KdbenchError(
            f"teacher {name}: its logits are not finite for {broken:,} of {len(logits):,} test images; its weights are damaged or too large"
        )


def freeze(net: TappedNet) -> TappedNet:
    """Put a net into eval mode for good and take its parameters out of every graph's leaves."""
    return net.eval().requires_grad_(False)
