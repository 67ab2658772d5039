"""The 1,000 classes of ImageNet-1K in the order of the classifiers that were trained on it. Works without torch."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Container
from functools import lru_cache
from pathlib import Path

from kdbench.errors import KdbenchError, UnknownNameError, nearest

#: The data set, in messages.
TITLE = "ImageNet-1K"
#: The name of a class: the number of its noun in WordNet.
WNID = re.compile(r"n\d{8}")
#: How the official names of training images begin, or those of copies from Hugging Face's hub end.
_IN_NAME = re.compile(r"(?:^|/)(n\d{8})_\d+(?:_n\d{8})?\.\w+$|\d_(n\d{8})\.\w+$")


@lru_cache(maxsize=1)
def wnids() -> tuple[str, ...]:
    """The WNIDs, class 0 first, in sorted order, which is that of timm's and torchvision's classifiers.

    The devkit of ILSVRC 2012 numbers the classes from 1 in another order (``ILSVRC2012_ID``).
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


def refuse_other_class(name: str, wnid: str, where: str) -> None:
    """Raise ``KdbenchError`` if the official name of an image (``n01440764_10026.JPEG``, or with the class appended) contradicts
    its label ``wnid``: some copies number the classes in another order."""
    match = _IN_NAME.search(name)
    told = (match[1] or match[2]) if match else None
    if told is not None and told != wnid:
        raise KdbenchError(
            f"{TITLE}: {where} gives {name} the class {wnid}, but its name says {told}; "
            "expected classes numbered from 0 in the order of sorted WNIDs"
        )


def refuse_unknown(wnid: str, wanted: Container[str], where: str) -> None:
    """Raise ``KdbenchError`` for a WNID outside ImageNet-1K, unless only some classes are wanted (of a larger ImageNet)."""
    if wnid not in numbers() and all(name in wanted for name in wnids()):
        raise KdbenchError(f"{TITLE}: {where} is of {wnid}, no class of ILSVRC 2012; {nearest(wnid, wnids())}")


def _timm_file(name: str) -> Path:
    """A table that comes with timm, whose package is looked up but not imported, because that imports torch."""
    found = importlib.util.find_spec("timm")
    path = Path(found.origin).parent / "data" / "_info" / name if found and found.origin else None
    if path is None or not path.is_file():
        raise KdbenchError(f"timm's list of ImageNet classes ({name}) is not where timm 1.0.21 and later have it")
    return path
