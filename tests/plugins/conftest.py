"""What tests of plugins share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from mmengine.registry import HOOKS

from kdbench.plugins.entry import METHODS
from kdbench.plugins.metrics import METRICS


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test begins and ends without metrics, methods and hooks of plugins."""
    before, hooks = {**METRICS}, {*HOOKS.module_dict}
    yield
    METRICS.clear()
    METRICS.update(before)
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        del METHODS[name]
    for module in [module for module in sys.modules if module.startswith("kdbench_plugin_")]:
        del sys.modules[module]
    for hook in HOOKS.module_dict.keys() - hooks:
        del HOOKS.module_dict[hook]
