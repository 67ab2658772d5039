"""Names of a data set's classes and superclasses, kept once per run directory for tables by class. Works without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kdbench.shown import NAME_LENGTH, printable
from kdbench.store.files import DamagedFileError, read_json, write_json
from kdbench.store.layout import classes_file


@dataclass(frozen=True)
class ClassNames:
    """Attributes: ``class_names`` of each class; ``coarse``, the superclass of each class, and ``coarse_names``, or None."""

    class_names: tuple[str, ...]
    coarse: tuple[int, ...] | None = None
    coarse_names: tuple[str, ...] | None = None


def write_classes(
    root: Path,
    dataset: str,
    class_names: Sequence[str] | None,
    coarse: Sequence[int] | None = None,
    coarse_names: Sequence[str] | None = None,
) -> None:
    """Write ``ROOT/datasets/NAME.json``, unless the classes have no names or the file says the same already."""
    if class_names is None:
        return
    pairs = None if coarse is None or coarse_names is None else (tuple(map(int, coarse)), _shown(coarse_names))
    names = ClassNames(_shown(class_names), *(pairs or ()))
    if read_classes(root, dataset) != names:
        write_json(classes_file(root, dataset), asdict(names))


def read_classes(root: Path, dataset: str) -> ClassNames | None:
    """What ``write_classes`` wrote; None where there is nothing, or something else."""
    with contextlib.suppress(DamagedFileError, OSError, KeyError, TypeError, ValueError, OverflowError):
        stored = read_json(classes_file(root, dataset))
        names = _shown(stored["class_names"])
        if stored["coarse"] is None or stored["coarse_names"] is None:
            return ClassNames(names)
        coarse = tuple(int(number) for number in stored["coarse"])
        above = _shown(stored["coarse_names"])
        if len(coarse) == len(names) and all(0 <= number < len(above) for number in coarse):
            return ClassNames(names, coarse, above)
        return ClassNames(names)
    return None


def _shown(names: Sequence[object]) -> tuple[str, ...]:
    """Names of classes are names of folders, which need not be UTF-8."""
    return tuple(printable(name, NAME_LENGTH) for name in names)
