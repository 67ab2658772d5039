"""One split of a data set on disk, in an order that does not depend on the layout; the images held out for validation."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from kdbench.data.images import FileSet, ImageSource
from kdbench.errors import KdbenchError

#: Copies from Hugging Face's hub append the class to the official name: n01440764_10026_n01440764.JPEG.
_APPENDED_WNID = re.compile(r"(?<=\d)_n\d{8}$")


@dataclass(frozen=True)
class Part:
    """Images of one split, sorted by class and then by stem.

    Attributes:
        source: the images.
        labels: (N,) int64, the class of each.
        stems: see ``stem``.
        notes: on the files, a line each.
    """

    source: ImageSource
    labels: np.ndarray
    stems: Sequence[str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def file_set(part: Part, undecodable: float) -> FileSet:
    """The images of a part, of which a share ``undecodable`` may fail to decode."""
    return FileSet(part.source, torch.arange(len(part)), torch.from_numpy(part.labels), undecodable)


def note_on_bad(bad: Sequence[str], count: int, undecodable: float, title: str) -> list[str]:
    """A note on the ``bad`` ones (with the reason) of ``count`` files.

    Raises:
        KdbenchError: if their share is larger than ``undecodable``.
    """
    if not bad:
        return []
    more = f", and {len(bad) - 1:,} more of the {count:,} looked at" if len(bad) > 1 else ""
    if len(bad) > undecodable * count:
        raise KdbenchError(
            f"{title}: {bad[0]}{more}: copy again, remove them, or let the suite say which share may fail (undecodable)"
        )
    return [f"{bad[0]}{more}; another image takes the place"]


def stem(name: str) -> str:
    """The name of an image in every layout: without folders, extension and an appended class."""
    return _APPENDED_WNID.sub("", os.path.splitext(os.path.basename(name))[0])


def sorted_order(labels: Sequence[int], names: Sequence[str]) -> list[int]:
    """Positions sorted by class, stem and name: the same for the same images in every layout."""
    keys = [(label, stem(name), name) for label, name in zip(labels, names, strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def held_out_positions(part: Part, salt: str, count: Callable[[int], int]) -> np.ndarray:
    """Positions of the images that are held out for validation, in order.

    An image's rank in its class is the SHA-256 of its stem: layout, choice of classes, missing files and random numbers of
    libraries do not change the split.

    Args:
        salt: the fixed seed.
        count: size of a class -> images held out.

    Returns:
        (M,) int64.
    """
    bounds = [0, *(np.flatnonzero(np.diff(part.labels)) + 1).tolist(), len(part)]
    chosen: list[int] = []
    for start, stop in pairwise(bounds):
        rank = sorted(
            range(start, stop),
            key=lambda at: (hashlib.sha256(f"{salt} {part.stems[at]}".encode("utf-8", "surrogateescape")).digest(), at),
        )
        chosen += rank[: count(stop - start)]
    return np.array(sorted(chosen), dtype=np.int64)
