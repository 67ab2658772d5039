"""A small matrix that takes long enough to be disturbed, and the comparison of two run directories to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kdbench.store.files import read_json
from tests.conftest import tiny

#: Two pairs, one of them with BatchNorm in the student, two methods: jobs of some seconds of training.
EPOCHS = 40


def write_matrix(path: Path, epochs: int = EPOCHS) -> Path:
    """Write the suite's file."""
    recipe = {"epochs": epochs}
    protocol = {
        "description": "to be disturbed",
        "pairs": ["cnn--vit", "vit--cnn"],
        "recipe": recipe,
        "teacher": {"epochs": epochs // 4, "batch_size": 100},
    }
    path.write_text(yaml.safe_dump(tiny(protocols={"long": protocol}, default_protocol="long"), sort_keys=False))
    return path


def results(runs: Path) -> dict[str, Path]:
    """Every result below a run directory, of cells and of teachers."""
    found = [*runs.glob("*/*/*--*/*/seed*/result.json"), *runs.glob("teachers/*/result.json")]
    return {str(path.relative_to(runs)): path for path in found}


def differences(whole: Path, disturbed: Path) -> list[str]:
    """What of an undisturbed run is missing, doubled or different in a disturbed one; empty when nothing is."""
    first, second = results(whole), results(disturbed)
    found = [f"missing: {name}" for name in first.keys() - second.keys()]
    found += [f"too many: {name}" for name in second.keys() - first.keys()]
    for name in first.keys() & second.keys():
        one, two = read_json(first[name]), read_json(second[name])
        found += [f"{name}: {key}" for key in ("metrics", "losses", "checksum") if one.get(key) != two.get(key)]
        for file in ("history.csv", "student.safetensors", "weights.safetensors"):
            if _content(first[name].with_name(file)) != _content(second[name].with_name(file)):
                found.append(f"{name}: {file}")
        if first[name].with_name("predictions.npz").exists():
            one, two = (_arrays(path.with_name("predictions.npz")) for path in (first[name], second[name]))
            found += [f"{name}: predictions {key}" for key in one if not np.array_equal(one[key], two[key])]
    left = [
        *disturbed.glob("*/*/*--*/*/seed*/*"),
        *disturbed.glob("*/*/*--*/*/seed*/.*"),
        *disturbed.glob("teachers/*/*"),
    ]
    names = ("checkpoint", "claim", "failed", ".")
    return found + [f"left over: {path}" for path in left if path.name.startswith(names)]


def times_trained(runs: Path) -> dict[str, int]:
    """How often each cell was brought to its end, by its log."""
    return {
        str(path.parent.relative_to(runs)): path.read_text().count(" done in ")
        for path in runs.glob("*/*/*--*/*/seed*/log.txt")
    }


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
