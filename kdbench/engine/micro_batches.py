"""A batch in parts: the same images in several smaller forward passes, where a whole one does not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from kdbench.method import Batch, Outputs

Part = tuple[float, Batch, Tensor, Tensor | None, Outputs | None]


def split_batch(batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None, count: int) -> list[Part]:
    """``count`` parts of nearly equal size, each with its share of the batch.

    Losses that compare the samples of a batch see those of a part only.
    """
    size = len(images)
    bounds = [size * part // count for part in range(count + 1)]
    parts: list[Part] = []
    for start, stop in pairwise(bounds):
        if start == stop:
            continue
        rows = slice(start, stop)
        part = replace(
            batch,
            labels=batch.labels[rows],
            index=batch.index[rows],
            targets=None if batch.targets is None else batch.targets[rows],
        )
        share = (stop - start) / size
        parts.append(
            (share, part, images[rows], None if strong is None else strong[rows], rows_of_outputs(teacher, rows))
        )
    return parts


def rows_of_outputs(outputs: Outputs | None, rows: slice) -> Any:
    """Some rows of what a net computed."""
    if outputs is None:
        return None

    def cut(features: Sequence[Any] | None) -> Any:
        return None if features is None else [feature.each(lambda value: value[rows]) for feature in features]

    return replace(
        outputs,
        logits=outputs.logits[rows],
        stages=cut(outputs.stages),
        embedding=None if outputs.embedding is None else outputs.embedding[rows],
        images=None if outputs.images is None else outputs.images[rows],
        strong=rows_of_outputs(outputs.strong, rows),
        heads=None if outputs.heads is None else tuple(head[rows] for head in outputs.heads),
        attention=cut(outputs.attention),
    )
