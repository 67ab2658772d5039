"""Training batches: made on the device from data that lies there, or exactly as timm makes them, in loader processes.

A batch is a pure function of (seed, epoch, step): it can be made again, and training can go on from any step.
Read ``batches.py`` (what a batch is), then ``device.py`` and ``exact.py`` (the two pipelines).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.data.augment import random_shift, strong_augment
from kdbench.data.batches import Frame, Pipeline, TrainingBatch
from kdbench.data.device import DevicePipeline
from kdbench.data.exact import ExactPipeline
from kdbench.data.images import Images, ImageSet
from kdbench.data.loader import TIMEOUT
from kdbench.data.transforms import Say
from kdbench.errors import KdbenchError
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.recipe import Recipe

__all__ = [
    "DevicePipeline",
    "ExactPipeline",
    "Pipeline",
    "TrainingBatch",
    "make_pipeline",
    "random_shift",
    "strong_augment",
]


def make_pipeline(
    data: Images,
    spec: DatasetSpec,
    recipe: Recipe,
    num_classes: int,
    seed: int,
    device: torch.device | str,
    strong_view: bool = False,
    *,
    rows: Tensor | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    say: Say | None = None,
) -> Pipeline:
    """The pipeline that a recipe names: on the device, or exact.

    Args:
        rows: positions in the global batch that this process gets; None for all (see ``check_rows``).
        workers: loader processes of the exact pipeline; 0 decodes in this process; None by the number of cores.
        timeout: seconds after which a loader process that does not answer counts as hung.
        say: is told of images that do not decode.

    Raises:
        KdbenchError: if the data is in files and the recipe wants its batches made on the device; and see the pipelines.
    """
    frame = Frame.of(spec)
    if recipe.pipeline == "exact":
        return ExactPipeline(
            data, recipe, num_classes, seed, device, strong_view, frame, rows, workers=workers, timeout=timeout, say=say
        )
    if not isinstance(data, ImageSet):
        raise KdbenchError(f"the images of {spec.name} are files, decoded when they are needed: set pipeline: exact")
    return DevicePipeline(data, recipe, num_classes, seed, device, strong_view, frame, rows)
