"""A store on disk with cells as the engine writes them, from figures; no training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from kdbench.store.files import write_json
from kdbench.store.result import write_record
from tests.records import cell_result

IMAGES = 200


def write_store(root: Path, frame: pd.DataFrame, images: int = IMAGES, epochs: int = 5, log: str = "") -> pd.DataFrame:
    """Write folders for the rows of a frame of ``factory`` and return the frame with its paths set to them.

    Predictions have each row's accuracy exactly (to 1 / images); which images are right depends on the seed and method.
    """
    paths = []
    for number, row in enumerate(frame.to_dict("records")):
        path = f"{row['suite']}/{row['protocol']}/{row['pair']}/{row['method']}/seed{row['seed']}-{number:010x}"
        paths.append(path)
        folder = root / path
        folder.mkdir(parents=True)
        config = {"suite": row["suite"], "method": {"name": row["method"], "hyperparameters": {"temperature": 4.0}}}
        write_json(folder / "config.json", {"hash": row["config_hash"], "config": config, "facts": {}})
        if row["state"] != "done":
            continue
        rng = np.random.default_rng([number, row["seed"]])
        correct = np.zeros(images, bool)
        correct[rng.permutation(images)[: round(row["top1"] / 100 * images)]] = True
        probability = np.clip(0.35 + 0.5 * correct + rng.normal(0, 0.15, images), 0.1, 1.0).astype(np.float32)
        predicted = rng.integers(0, 10, images, dtype=np.int32)
        label = np.arange(images, dtype=np.int32) % 10
        np.savez(
            folder / "predictions.npz", correct=correct, probability=probability, predicted=predicted, label=label
        )  # fmt: skip
        lines = ["epoch,lr,loss,top1,agreement"]
        for epoch in range(1, epochs + 1):
            top1 = row["top1"] * (1 - 0.5 ** (epoch + rng.normal(0, 0.1)))
            lines.append(f"{epoch},{0.1 / epoch},{3 / epoch},{top1},{top1 - 1}")
        (folder / "history.csv").write_text("\n".join(lines) + "\n")
        (folder / "log.txt").write_text(log or "".join(f"epoch {e + 1}/{epochs}\n" for e in range(epochs)))
        cell: Any = SimpleNamespace(hash=row["config_hash"], teacher=SimpleNamespace(name=row["teacher"], hash="t"))
        write_record(folder / "result.json", cell_result(cell, row["top1"], device=row["device"]))
    return frame.assign(path=paths)
