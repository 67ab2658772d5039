"""Benchmark suite for knowledge distillation between different architectures.

A plugin imports ``Method`` and ``register_method`` from here; a script or a notebook calls ``plan``, ``run``, ``tune``, ``table``,
``leaderboard`` and ``load_results``. torch is loaded only when a name that needs it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdbench.api import leaderboard, plan, run, table, tune
    from kdbench.errors import KdbenchError
    from kdbench.hyperparameters import Range
    from kdbench.method import Batch, Feature, Method, NetInfo, Outputs, StageInfo, Task
    from kdbench.plugins.entry import register_method
    from kdbench.plugins.metrics import register_metric
    from kdbench.store.rows import load_results
    from kdbench.students.student import load_student

_HOME = {
    **dict.fromkeys(("Batch", "Feature", "Method", "NetInfo", "Outputs", "StageInfo", "Task"), "kdbench.method"),
    **dict.fromkeys(("leaderboard", "plan", "run", "table", "tune"), "kdbench.api"),
    "KdbenchError": "kdbench.errors",
    "Range": "kdbench.hyperparameters",
    "load_results": "kdbench.store.rows",
    "load_student": "kdbench.students.student",
    "register_method": "kdbench.plugins.entry",
    "register_metric": "kdbench.plugins.metrics",
}

__all__ = [
    "Batch",
    "Feature",
    "KdbenchError",
    "Method",
    "NetInfo",
    "Outputs",
    "Range",
    "StageInfo",
    "Task",
    "__version__",
    "leaderboard",
    "load_results",
    "load_student",
    "plan",
    "register_method",
    "register_metric",
    "run",
    "table",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kdbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
