"""The 1,000 classes of ImageNet-1K in the order of the classifiers that were trained on it. Works without torch."""

from __future__ import annotations

import csv
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from kdbench.errors import KdbenchError, UnknownNameError

#: How a class is called: a noun of WordNet by its number.
WNID = re.compile(r"n\d{8}")


@lru_cache(maxsize=1)
def wnids() -> tuple[str, ...]:
    """The WNIDs, class 0 first. The order is that of timm's and torchvision's classifiers, which is the sorted one.

    The devkit of ILSVRC 2012 numbers the classes from 1 in an order of its own (``ILSVRC2012_ID``), which is another.
    """
    return tuple(_timm_file("imagenet_synsets.txt").read_text("utf-8").split())


@lru_cache(maxsize=1)
def class_names() -> dict[str, str]:
    """What each WNID means: ``tench, Tinca tinca``."""
    with _timm_file("imagenet_synset_to_lemma.txt").open(encoding="utf-8", newline="") as lines:
        words = {row[0]: row[1] for row in csv.reader(lines, delimiter="\t") if len(row) > 1}
    return {wnid: words[wnid] for wnid in wnids()}


@lru_cache(maxsize=1)
def numbers() -> dict[str, int]:
    """The class, 0 to 999, of every WNID."""
    return {wnid: number for number, wnid in enumerate(wnids())}


def wnid_to_index(wnid: str) -> int:
    """The class, 0 to 999, of a WNID.

    Raises:
        UnknownNameError: with the nearest WNID.
    """
    if wnid not in numbers():
        raise UnknownNameError("class of ImageNet-1K", wnid, wnids())
    return numbers()[wnid]


def _timm_file(name: str) -> Path:
    """A table that comes with timm, whose package is looked up but not imported, because that imports torch."""
    found = importlib.util.find_spec("timm")
    path = Path(found.origin).parent / "data" / "_info" / name if found and found.origin else None
    if path is None or not path.is_file():
        raise KdbenchError(f"timm's list of ImageNet classes ({name}) is not where timm 1.0.20 and later have it")
    return path
