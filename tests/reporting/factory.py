"""Synthetic results, shaped as ``kdbench.load_results`` gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

NETS = {
    "swin_tiny": ("Swin-T", "vit"),
    "vit_small": ("ViT-S", "vit"),
    "convnext_tiny": ("ConvNeXt-T", "cnn"),
    "mixer_b16": ("Mixer-B/16", "mlp"),
    "resnet18": ("ResNet18", "cnn"),
    "mobilenetv2_100": ("MobileNetV2", "cnn"),
    "deit_tiny": ("DeiT-T", "vit"),
    "resmlp_12": ("ResMLP-S12", "mlp"),
}
METHODS = {
    "scratch": ("From scratch", "baseline", "reference"),
    "kd": ("KD", "logits", "reference"),
    "dkd": ("DKD", "logits", "reference"),
    "fitnet": ("FitNet", "hint", "paper"),
    "fitnet-kd": ("FitNet + KD", "hint", "paper"),
    "crd": ("CRD", "relation", "reference"),
    "ofa": ("OFA", "hybrid", "reference"),
    "tas": ("FBT", "hybrid", "reconstruction"),
}


def cell(pair: str, method: str, top1: float | None = None, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One row; done when ``top1`` is given, else planned. ``changes`` replace or add columns."""
    teacher, student = pair.split("--")
    display, family, fidelity = METHODS.get(method, (method.upper(), "logits", "paper"))
    row: dict[str, Any] = {
        "suite": "toy",
        "protocol": "short",
        "split": "test",
        "pair": pair,
        "teacher": teacher,
        "student": student,
        "teacher_display": NETS.get(teacher, (teacher, ""))[0],
        "student_display": NETS.get(student, (student, ""))[0],
        "teacher_family": NETS.get(teacher, ("", "cnn"))[1],
        "student_family": NETS.get(student, ("", "cnn"))[1],
        "method": method,
        "method_display": display,
        "method_family": family,
        "fidelity": fidelity,
        "seed": seed,
        "state": "planned" if top1 is None else "done",
        "reason": "",
        "dataset": "digits",
        "epochs": 30,
        "config_hash": f"{pair}/{method}/{seed}",
        "hyperparameters": json.dumps({}),
        "path": f"runs/{pair}/{method}/seed{seed}",
    }
    if top1 is not None:
        row |= {
            "top1": top1,
            "best_top1": top1 + 0.5,
            "top5": min(top1 + 5, 100.0),
            "best_top5": min(top1 + 5.5, 100.0),
            "nll": 2 - top1 / 100,
            "best_nll": 1.9 - top1 / 100,
            "ece": 5.0,
            "best_ece": 5.0,
            "agreement": top1 - 1,
            "best_agreement": top1 - 1,
            "teacher_kl": 0.4,
            "best_teacher_kl": 0.4,
            "best_epoch": 28,
            "teacher_top1": 95.0,
            "teacher_top5": 99.5,
            "student_parameters": 11_000_000,
            "extra_parameters": 0,
            "step_seconds": 0.010,
            "train_seconds": 100.0,
            "peak_memory_bytes": float("nan"),
            "device": "cpu",
            "commit": "0123456789abcdef",
            "dirty": False,
            "finished": "2026-03-01T12:00:00",
        }
    return row | changes


def frame(figures: Mapping[str, Mapping[str, float | Sequence[float] | None]], **changes: Any) -> pd.DataFrame:
    """Results from ``{pair: {method: top-1, or one per seed, or None where it is only planned}}``."""
    rows = []
    for pair, methods in figures.items():
        for method, value in methods.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            rows += [cell(pair, method, v, seed, **changes) for seed, v in enumerate(values)]
    return pd.DataFrame(rows)


def small() -> pd.DataFrame:
    """Three pairs, three students, four methods besides scratch, two seeds, whole."""
    cnn = {"scratch": [80.0, 82.0], "kd": [83.0, 85.0], "dkd": [84.0, 86.0], "ofa": [86.0, 88.0], "tas": [79.0, 81.0]}
    vit = {"scratch": [70.0, 70.0], "kd": [72.0, 72.0], "dkd": [71.0, 71.0], "ofa": [74.0, 75.0], "tas": [73.0, 73.0]}
    mlp = {"scratch": [60.0, 60.0], "kd": [65.0, 65.0], "dkd": [66.0, 66.0], "ofa": [64.0, 64.0], "tas": [66.0, 66.0]}
    return frame({"swin_tiny--resnet18": cnn, "convnext_tiny--deit_tiny": vit, "swin_tiny--resmlp_12": mlp})
