"""Teachers: prepared once and kept by the hash of everything they depend on, then loaded, checked and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from kdbench.errors import KdbenchError
from kdbench.matrix.teachers import TeacherPlan
from kdbench.nets.tapped import TappedNet, hash_of_state, state_hash
from kdbench.store.folders import Store, write_bytes


def save_weights(net: TappedNet, path: Path) -> str:
    """Write a net's weights (safetensors: data that cannot run code) and return their checksum."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in net.net.state_dict().items()}
    write_bytes(path, safetensors.torch.save(tensors))
    return state_hash(net.net)


def weights_are_sound(path: Path, checksum: str) -> bool:
    """Whether a file that ``save_weights`` wrote is there, whole, and has that checksum."""
    try:
        return hash_of_state(safetensors.torch.load(path.read_bytes())) == checksum
    except Exception:  # what safetensors raises for a damaged file depends on where it is damaged
        return False


def load_teacher(
    plan: TeacherPlan, store: Store, num_classes: int, device: torch.device
) -> tuple[TappedNet, dict[str, Any]]:
    """Load a prepared teacher, frozen: eval mode, no gradients.

    Returns:
        the net and its result (``checksum``, accuracies).

    Raises:
        KdbenchError: if it has not been prepared, or its weights are not those of its result.
    """
    result = store.result_of_teacher(plan)
    folder = store.teacher(plan)
    if result is None:
        raise KdbenchError(
            f"teacher {plan.name} has not been prepared yet: {folder / 'weights.safetensors'} is missing"
        )
    net = TappedNet(plan.net, num_classes, plan.name)
    try:
        net.net.load_state_dict(safetensors.torch.load((folder / "weights.safetensors").read_bytes()))
    except Exception as error:
        raise KdbenchError(
            f"weights of teacher {plan.name} in {folder} are damaged ({type(error).__name__}); the next kdbench run makes them anew"
        ) from None
    if state_hash(net.net) != result["checksum"]:
        raise KdbenchError(
            f"weights of teacher {plan.name} in {folder} do not match their checksum; the next kdbench run makes them anew"
        )
    return freeze(net.to(device)), result


def freeze(net: TappedNet) -> TappedNet:
    """Put a net into eval mode for good and take its parameters out of every graph's leaves."""
    net.eval()
    net.requires_grad_(False)
    return net
