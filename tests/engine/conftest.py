"""A suite that trains in a second per cell, and a way to run parts of it in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import HOOKS

from kdbench.engine import train
from kdbench.matrix.cells import Cohort, Plan, make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog
from kdbench.store.files import read_json
from kdbench.store.folders import Store
from kdbench.suite.suite import Suite, merge

TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "dataset": {"name": "digits", "images_per_class": 8},
    "nets": {
        # drop path and dropout: nets that draw random numbers while they train
        "cnn": {
            "timm": "resnet_32px_small",
            "family": "cnn",
            "args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_stride": 2},
            "memory_format": "channels_last",
        },
        "vit": {
            "timm": "vit_32px_small",
            "family": "vit",
            "args": {
                "patch_size": 8,
                "embed_dim": 32,
                "depth": 4,
                "num_heads": 2,
                "drop_path_rate": 0.2,
                "proj_drop_rate": 0.1,
            },
        },
    },
    "pairs": ["cnn--vit", "vit--cnn"],
    "recipes": {
        "cnn": {
            "epochs": 3,
            "batch_size": 20,
            "optimizer": {"name": "sgd", "lr": 0.05},
            "clip_norm": 5.0,
            "augment": {"crop_padding": 2},
        },
        "token": {
            "epochs": 3,
            "batch_size": 20,
            "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.05},
            "schedule": {"warmup_epochs": 1, "per": "step"},
            "augment": {"crop_padding": 2, "mixup": 0.2},
            "label_smoothing": 0.1,
            "clip_norm": 5.0,
        },
    },
    "student_recipe": {"cnn": "cnn", "vit": "token", "mlp": "token"},
    "teacher_recipe": {"cnn": "cnn", "vit": "token", "mlp": "token"},
    "methods": {"default": ["scratch", "kd"], "set": {"crd": {"num_negatives": 64}}},
    "protocols": {
        "short": {
            "description": "three epochs",
            "teacher": {"epochs": 2, "batch_size": 50},
            "teacher_images_per_class": 15,
            "measured_images_per_class": 10,
        }
    },
    "default_protocol": "short",
}

ONE_EPOCH: dict[str, Any] = {"epochs": 1, "schedule": {"name": "constant"}}


class Lab:
    """Runs cells of the tiny suite in this process, in any company and order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.device = train.setup(1, "cpu")
        self.events: list[dict[str, Any]] = []

    def plan(
        self,
        methods: Sequence[str],
        pair: str = "cnn--vit",
        plugins: Sequence[str] = (),
        seeds: Sequence[int] = (0,),
        recipe: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> Plan:
        """A plan of the tiny suite; ``recipe`` changes fields of every student's recipe."""
        choice = Request(methods=tuple(methods), pairs=(pair,), plugins=tuple(plugins), seeds=tuple(seeds), **request)
        changes: dict[str, Any] = {"protocols": {"short": {"recipe": dict(recipe or {})}}}
        return check_cells(make_plan(Suite.model_validate(merge(TINY, changes)), choice, catalog(plugins)))

    def train(
        self,
        plan: Plan,
        out: str = "runs",
        solo: bool = False,
        reverse: bool = False,
        on_event: Callable[[dict[str, Any]], bool | None] = lambda event: None,
    ) -> Store:
        store = self.store(out)

        def emit(event: dict[str, Any]) -> bool | None:
            self.events.append(event)
            return on_event(event)

        for teacher in plan.teachers:
            if store.result_of_teacher(teacher) is None:
                train.train_teacher(plan, teacher, store, self.device, self.events.append)
        cells = [cell for cell in plan.cells if store.cell(cell).state() not in ("done", "failed")]
        for cell in cells:
            store.cell(cell).prepare(cell)
        for cohort in plan.cohorts(solo, cells[::-1] if reverse else cells):
            train.train_cohort(plan, cohort, store, self.device, emit)
        return store

    def store(self, out: str) -> Store:
        store = Store(self.root / out)
        store.check(writable=True)
        return store

    @staticmethod
    def result(store: Store, plan: Plan, method: str) -> dict[str, Any]:
        cell = next(cell for cell in plan.cells if cell.method == method)
        return read_json(store.cell(cell).result)


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    threads = torch.get_num_threads()
    yield Lab(tmp_path)
    torch.set_num_threads(threads)
    for registry in (METHODS, HOOKS._module_dict):
        for name in [name for name, cls in registry.items() if cls.__module__.startswith("kdbench_plugin_")]:
            del registry[name]


@pytest.fixture
def write_plugin(tmp_path: Path) -> Callable[[str, str], str]:
    """Write a plugin whose ``forward`` has the given body, and return its path."""

    def write(name: str, body: str) -> str:
        path = tmp_path / f"{name}.py"
        lines = "\n".join(f"        {line}" for line in body.splitlines())
        path.write_text(
            "import random\nimport numpy as np\nimport torch\nfrom kdbench import Method, register_method\n\n\n"
            f'@register_method("{name}")\nclass Plugin(Method):\n    """A plugin."""\n\n'
            "    def forward(self, batch, student, teacher):\n"
            f"{lines}\n"
        )
        return str(path)

    return write


def cohort_of(plan: Plan) -> Cohort:
    (cohort,) = plan.cohorts()
    return cohort
