"""What the benchmarks train: a pair of a suite, cifar100-32 unless said, on made-up images of its size, as the engine builds it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import kdbench.engine.process  # noqa: F401 - first, so that its message comes before a traceback
from kdbench.data.device import DevicePipeline
from kdbench.data.images import ImageSet
from kdbench.engine.cell import CellTrainer, TrainingSpec
from kdbench.engine.checkpoint import Position
from kdbench.engine.cohort import CohortModel
from kdbench.engine.compiled import Forward
from kdbench.engine.faults import CellFailure
from kdbench.engine.process import keep_freed_memory
from kdbench.engine.teacher import freeze
from kdbench.method import Task
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.registry import catalog
from kdbench.seeding import seed_for
from kdbench.store.folders import CellFolder
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe
from kdbench.suite.suite import load_suite

SUITE, CLASSES = "cifar100-32", 100

#: A residual net of ResNet-18's width and depth, for 32 px (He et al. 2016 as CIFAR codes have it: 11.2 million parameters).
RESNET18 = NetSpec(
    timm="resnet_32px_large", family="cnn", args={"channels": (64, 128, 256, 512), "stem_width": 64}
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A pair with its recipe.

    Attributes:
        teacher, student: nets.
        recipe: of the student.
        images: number of training images, made up.
        device: where it is trained.
        threads: of the CPU.
        size: of the images, px.
    """

    teacher: NetSpec
    student: NetSpec
    recipe: Recipe
    images: int
    device: torch.device
    threads: int = 1
    size: int = 32

    def describe(self) -> dict[str, Any]:
        """What a result says about it."""
        return {
            "teacher": self.teacher.model_dump(exclude_defaults=True),
            "student": self.student.model_dump(exclude_defaults=True),
            "batch_size": self.recipe.batch_size,
            "optimizer": self.recipe.optimizer.name,
            "augment": self.recipe.augment.model_dump(exclude_defaults=True),
            "precision": self.recipe.precision,
            "images": self.images,
            "threads": self.threads,
        }


def make_setting(
    pair: str,
    device: torch.device,
    batch_size: int = 128,
    images: int = 50_000,
    threads: int = 1,
    suite: str = SUITE,
    **recipe: Any,
) -> Setting:
    """A pair of a suite (in cifar100-32 ``resnet18`` is a net too); the recipe is that of its CNNs, or its first, with changes."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as a run does
    found = load_suite(suite)
    nets = {"resnet18": RESNET18, **found.nets}
    teacher, student = (nets[name] for name in pair.split("--"))
    base = found.recipes.get("cnn") or next(iter(found.recipes.values()))
    chosen = Recipe.model_validate({**base.model_dump(), "batch_size": batch_size, **recipe})
    return Setting(teacher, student, chosen, images, device, threads, found.dataset.image_size or 32)


def make_images(count: int, size: int = 32) -> ImageSet:
    """Noise with labels in turn: speed does not depend on what images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % CLASSES)


def make_pipeline(setting: Setting, data: ImageSet | None = None) -> DevicePipeline:
    """Batches of the setting."""
    return DevicePipeline(data or make_images(setting.images, setting.size), setting.recipe, CLASSES, 0, setting.device)


def make_teacher(setting: Setting) -> TappedNet:
    """The teacher, frozen, with weights as drawn."""
    torch.manual_seed(1)
    return freeze(TappedNet(setting.teacher, CLASSES, "teacher").to(setting.device))


def make_cohort(
    setting: Setting,
    methods: Sequence[str],
    pipeline: DevicePipeline,
    teacher: TappedNet,
    folder: Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> CohortModel:
    """A cohort as a run has it, of one cell per method, with the views that they need. A failure of a cell ends the benchmark."""
    known = catalog()
    pipeline.strong_view = any("strong" in known[name].needs for name in methods)
    labels = pipeline.dataset.labels.cpu()
    task = Task(CLASSES, len(labels), labels, "cifar100", setting.recipe.epochs)
    info = teacher.describe()
    cells = []
    for name in methods:
        entry = known[name]
        spec = TrainingSpec(
            key=name,
            name="student",
            net=setting.student,
            recipe=setting.recipe,
            method=entry.load(),
            hyperparameters=entry.resolve(SUITE, {}, (settings or {}).get(name, {})),
            net_seed=seed_for("student"),
            method_seed=seed_for("method", name),
            folder=CellFolder((folder or Path(tempfile.gettempdir(), "kdbench-benchmarks")) / name),
        )
        cells.append(CellTrainer(spec, task, info, len(pipeline), setting.device))

    def fail(cell: CellTrainer, failure: CellFailure) -> None:
        raise RuntimeError(f"{cell.key}: {failure.reason}\n{failure.details}")

    return CohortModel(cells, Forward(teacher), pipeline, setting.device, fail)


class Stepper:
    """Takes steps of a cohort, one after the other, epoch after epoch, as the runner's loop would."""

    def __init__(self, model: CohortModel) -> None:
        self.model = model
        self.taken = 0
        model.train()

    def __call__(self, count: int = 1) -> None:
        length = len(self.model.pipeline)
        for _ in range(count):
            epoch, step = divmod(self.taken, length)
            for cell in self.model.alive:
                cell.schedule.set(epoch, step)
            self.model.position = Position(epoch, step)
            self.model.train_step(self.model.pipeline.make(epoch, step))
            self.taken += 1


def with_blocks(net: NetSpec, count: int) -> NetSpec:
    """A ViT or an MLP with another number of blocks."""
    key = "depth" if "vit" in net.timm else "num_blocks"
    return net.model_copy(update={"args": {**net.args, key: count}})


def as_teacher(setting: Setting, net: NetSpec) -> Setting:
    """The setting with another teacher."""
    return replace(setting, teacher=net)
