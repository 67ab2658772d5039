"""Data sets loaded, checked and fetched by name; a data set's module is imported only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.data.images import Dataset
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.datasets import find_dataset


def load_dataset(wanted: DatasetSpec | str, folder: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        wanted: the suite's specification, or only the name.
        folder: the data folder of this machine (``digits`` needs none).

    Raises:
        KdbenchError: if it is not there, or not whole.
    """
    module, spec = _module(wanted)
    return module.load(folder, spec)


def check_dataset(wanted: DatasetSpec | str, folder: Path | None = None) -> tuple[str, ...]:
    """Check that a data set can be loaded, by ``check(folder, spec)`` of its module, where it has one.

    Returns:
        Notes on its files, a line each.

    Raises:
        KdbenchError: if files of it are missing.
    """
    module, spec = _module(wanted)
    return (module.check(folder, spec) if hasattr(module, "check") else None) or ()


def download_dataset(
    wanted: DatasetSpec | str, folder: Path | None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Fetch a data set that is not in ``folder`` yet, by ``download(folder, progress)`` of its module, where it has one.

    Raises:
        KdbenchError: if it cannot be had.
    """
    module, _ = _module(wanted)
    if hasattr(module, "download"):
        module.download(folder, progress)


def _module(wanted: DatasetSpec | str) -> tuple[Any, DatasetSpec]:
    entry = find_dataset(wanted if isinstance(wanted, str) else wanted.name)
    return importlib.import_module(entry.loader), DatasetSpec(name=wanted) if isinstance(wanted, str) else wanted
