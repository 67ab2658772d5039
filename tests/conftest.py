"""What several tests share: a suite that trains in a second or two, plugins, and the command line as a function."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench.suite.suite import Suite, merge

# Before anything imports torch; worker processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Three nets, one of each family, under recipes of two epochs. The first two pairs share a cohort.
TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "dataset": {"name": "digits", "images_per_class": 10},
    "nets": {
        "cnn": {
            "timm": "resnet_32px_small",
            "family": "cnn",
            "args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_stride": 2},
            "display": "Tiny CNN",
        },
        "vit": {
            "timm": "vit_32px_small",
            "family": "vit",
            "args": {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2},
        },
        "mlp": {
            "timm": "mixer_32px_small",
            "family": "mlp",
            "args": {"patch_size": 8, "embed_dim": 24, "num_blocks": 4},
        },
    },
    "pairs": ["cnn--vit", "cnn--mlp", "vit--cnn"],
    "recipes": {
        "cnn": {"epochs": 2, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.05}},
        "token": {
            "epochs": 2,
            "batch_size": 20,
            "optimizer": {"name": "adamw", "lr": 0.001},
            "schedule": {"warmup_epochs": 1, "per": "step"},
        },
    },
    "student_recipe": {"cnn": "cnn", "vit": "token", "mlp": "token"},
    "teacher_recipe": {"cnn": "cnn", "vit": "token", "mlp": "token"},
    "methods": {"default": ["scratch", "kd"]},
    "protocols": {
        "short": {"description": "one pair", "pairs": ["cnn--vit"], "teacher": {"batch_size": 100}},
        "seeds": {"description": "all pairs, two seeds", "seeds": [0, 1]},
        "long": {
            "description": "time to be interrupted",
            "pairs": ["cnn--vit"],
            "recipe": {"epochs": 40},
            "teacher": {"batch_size": 100},
        },
    },
    "default_protocol": "short",
}

PLUGIN = '''
from kdbench import Method, register_method
{before}

@register_method("{name}")
class Plugin(Method):
    """A plugin of the tests."""

    def __init__(self, student, teacher, task, *, weight: float = 1.0):
        super().__init__(student, teacher, task)
        self.weight = weight
        self.steps = 0

    def forward(self, batch, student, teacher):
        self.steps += 1
        return {{"ce": {loss}}}
'''


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny suite as a mapping, with nested changes."""
    return merge(copy.deepcopy(TINY), changes)


def tiny_suite(**changes: Any) -> Suite:
    """The tiny suite, with nested changes."""
    return Suite.model_validate(tiny(**changes))


@pytest.fixture(autouse=True)
def no_folders_of_the_user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no $KDBENCH_OUT, _DATA or _WEIGHTS, but those that are for real data."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # which a command that ran in this process has set
    if request.node.get_closest_marker("data") is None:
        for name in ("KDBENCH_OUT", "KDBENCH_DATA", "KDBENCH_WEIGHTS"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums over several threads differ in the last bits."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def forget_plugins() -> Iterator[None]:
    """The test leaves no metric, method or hook of a plugin behind."""
    from mmengine.registry import HOOKS

    from kdbench.plugins.entry import METHODS
    from kdbench.plugins.metrics import METRICS

    metrics, hooks = {**METRICS}, {*HOOKS.module_dict}
    yield
    METRICS.clear()
    METRICS.update(metrics)
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        del METHODS[name]
    for module in [module for module in sys.modules if module.startswith("kdbench_plugin_")]:
        del sys.modules[module]
    for hook in HOOKS.module_dict.keys() - hooks:
        del HOOKS.module_dict[hook]


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny suite, with nested changes, or any text, as a file."""

    def write(content: str | Mapping[str, Any] | None = None, name: str = "tiny.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        text = (
            content if isinstance(content, str) else yaml.safe_dump(dict(content or tiny(**changes)), sort_keys=False)
        )
        path.write_text(text)
        return path

    return write


@pytest.fixture
def write_plugin(tmp_path: Path) -> Callable[..., Path]:
    """Write a plugin that registers ``name``; ``before`` is run at import, ``loss`` is its one term."""

    def write(
        name: str = "mine", before: str = "", loss: str = "self.weight * batch.task_loss(student.logits)"
    ) -> Path:
        path = tmp_path / f"{name}_plugin.py"
        path.write_text(PLUGIN.format(name=name, before=before, loss=loss))
        return path

    return write


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def kdbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run the command line in this process."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command line sets it, but for this test alone
    from kdbench.cli.parser import main

    def run(*words: object) -> Said:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:  # argparse ends that way
            status = end.code if isinstance(end.code, int) else 1
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run
