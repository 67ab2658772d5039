"""Data sets loaded, checked and fetched by name; a data set's module is imported only then."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from kdbench.data.images import Dataset
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.datasets import find_dataset


def load_dataset(wanted: DatasetSpec | str, folder: Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        wanted: what a suite says about it, or only its name.
        folder: where data sets lie on this machine (``digits`` needs none).

    Raises:
        KdbenchError: if it is not there, or not whole.
    """
    spec = _spec(wanted)
    loaded: Dataset = importlib.import_module(find_dataset(spec.name).loader).load(folder, spec)
    return loaded


def open_dataset(wanted: DatasetSpec | str, folder: Path | None, split: str, limit: int | None = None) -> Dataset:
    """Load a data set to train on when ``split`` is measured, at most ``limit`` images of each of its splits."""
    dataset = load_dataset(wanted, folder).for_split(split)
    return dataset if limit is None else dataset.limited(limit)


def check_dataset(wanted: DatasetSpec | str, folder: Path | None = None) -> tuple[str, ...]:
    """See that a data set can be loaded, at a glance: its loader's ``check(folder, spec)``, where it has one.

    Returns:
        What is worth knowing of its files though it can be loaded, a line each.

    Raises:
        KdbenchError: if files of it are missing.
    """
    spec = _spec(wanted)
    check = getattr(importlib.import_module(find_dataset(spec.name).loader), "check", None)
    return tuple((check(folder, spec) if check is not None else None) or ())


def download_dataset(
    wanted: DatasetSpec | str, folder: Path | None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Fetch a data set that is not in ``folder`` yet: its loader's ``download(folder, progress)``, where it has one.

    Raises:
        KdbenchError: if it cannot be had.
    """
    download = getattr(importlib.import_module(find_dataset(_spec(wanted).name).loader), "download", None)
    if download is not None:
        download(folder, progress)


def _spec(wanted: DatasetSpec | str) -> DatasetSpec:
    if not isinstance(wanted, str):
        return wanted
    find_dataset(wanted)
    return DatasetSpec(name=wanted)
