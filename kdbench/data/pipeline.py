"""Training batches: made on the device from data in its memory, or exactly as in timm, in loader processes.

Read ``batches.py`` (what a batch is), then ``device.py`` and ``exact.py`` (the two pipelines).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.data.batches import Frame, Pipeline
from kdbench.data.device import DevicePipeline
from kdbench.data.exact import ExactPipeline
from kdbench.data.images import Images, ImageSet
from kdbench.data.loader import TIMEOUT
from kdbench.data.transforms import Say
from kdbench.errors import KdbenchError
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.recipe import Recipe


def make_pipeline(
    data: Images,
    spec: DatasetSpec,
    recipe: Recipe,
    num_classes: int,
    seed: int,
    device: torch.device,
    strong_view: bool = False,
    *,
    rows: Tensor | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    say: Say | None = None,
) -> Pipeline:
    """The pipeline that a recipe names: on the device, or exact (see ``ExactPipeline`` for the arguments).

    Raises:
        KdbenchError: if the data is in files and the recipe wants its batches made on the device; and see the pipelines.
    """
    frame = Frame(spec.image_size, spec.mean, spec.std)
    if recipe.pipeline == "exact":
        return ExactPipeline(
            data, recipe, num_classes, seed, device, strong_view, frame, rows, workers=workers, timeout=timeout, say=say
        )
    if not isinstance(data, ImageSet):
        raise KdbenchError(f"the images of {spec.name} are files, decoded when they are needed: set pipeline: exact")
    return DevicePipeline(data, recipe, num_classes, seed, device, strong_view, frame, rows)
