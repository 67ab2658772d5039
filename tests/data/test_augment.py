"""Batches made on the device: order, resampling, crops, erasing, mixing, parts of batches; and the distributions they share with timm."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.data.augment import crop_boxes, erased_boxes, random_erasing, strong_augment
from kdbench.data.batches import Frame
from kdbench.data.device import DevicePipeline
from kdbench.data.images import ImageSet
from kdbench.data.mixing import Mixer
from kdbench.data.order import epoch_order
from kdbench.data.pipeline import make_pipeline
from kdbench.data.resample import crop_and_resize, resize_and_centre
from kdbench.errors import KdbenchError
from kdbench.seeding import seed_for
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.recipe import ResizedCrop
from tests.data.pictures import files, histogram, pictures, recipe

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
EVERYTHING: dict[str, Any] = {
    "resized_crop": {},
    "flip": True,
    "erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_mode": "batch",
    "smoothing": 0.1,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float in [0, 255]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()


# Order


def test_repeated_augmentation_draws_as_timm_does_and_keeps_the_length_of_an_epoch() -> None:
    sampler = RepeatAugSampler(range(1000), num_replicas=1, rank=0, shuffle=False, num_repeats=3)
    order = epoch_order(1000, 5, 2, repeats=3)
    assert len(order) == 1000
    plain = epoch_order(1000, 5, 2)
    assert torch.equal(order[: len(sampler)], plain[list(sampler)])  # timm cuts to a multiple of 256
    assert order.bincount(minlength=1000).bincount().tolist() == [666, 1, 0, 333]
    assert torch.equal(order, epoch_order(1000, 5, 2, repeats=3))
    assert not torch.equal(order, epoch_order(1000, 5, 3, repeats=3))


def test_without_repeats_an_epoch_is_the_permutation_that_it_always_was() -> None:
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(seed_for(7, "order", 3)))
    assert torch.equal(epoch_order(50, 7, 3), expected)


def test_copies_of_an_image_in_a_batch_are_augmented_each_on_its_own() -> None:
    made = DevicePipeline(pictures(), recipe(9, repeats=3, resized_crop={}), 4, 0, "cpu").make(0, 0)
    assert made.batch.index.bincount().unique().tolist() == [0, 3]
    assert not torch.equal(made.images[0], made.images[1])


# Resampling


@pytest.mark.parametrize("kind", list(RESAMPLING))
@pytest.mark.parametrize("size", [17, 40, 96])
def test_crops_are_resized_as_pillow_resizes_them(kind: str, size: int) -> None:
    data = pictures(30, 64, 80)
    boxes = crop_boxes(30, 64, 80, ResizedCrop(), generator())
    resized = crop_and_resize(data.images, boxes, size, torch.full((30,), kind == "bicubic"))
    for number, (top, left, height, width) in enumerate(boxes.T.tolist()):
        crop = data.image(number).crop((left, top, left + width, top + height))
        wide = crop.resize(
            (size, int(height)), RESAMPLING[kind]
        )  # one axis after the other, as Pillow did before version 13
        assert torch.equal(resized[number], levels(wide.resize((size, size), RESAMPLING[kind])))
        assert float((resized[number] - levels(crop.resize((size, size), RESAMPLING[kind]))).abs().max()) <= 2


def test_resampling_in_parts_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data, boxes = pictures(9), crop_boxes(9, 40, 48, ResizedCrop(), generator())
    whole = crop_and_resize(data.images, boxes, 24, torch.arange(9) < 4)
    monkeypatch.setattr("kdbench.data.resample.CHUNK_NUMBERS", 1)
    assert torch.equal(crop_and_resize(data.images, boxes, 24, torch.arange(9) < 4), whole)


def test_a_crop_of_the_whole_image_at_its_size_changes_nothing() -> None:
    data = pictures(3, 32, 32)
    assert torch.equal(resize_and_centre(data.images, 32, 32, bicubic=True), data.images.float())


def test_batches_have_the_image_size_of_the_suite() -> None:
    for augment in ({"resized_crop": {}}, {"crop_padding": 3}, {}):
        made = DevicePipeline(pictures(), recipe(**augment), 4, 0, "cpu", frame=Frame(56)).make(0, 0)
        assert made.images.shape == (8, 3, 56, 56)
        assert 0 <= float(made.images.min()) <= float(made.images.max()) <= 1


# The same distributions as timm's


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 90)])
def test_crop_boxes_have_the_distribution_of_timms(height: int, width: int) -> None:
    """Histograms of area, ratio and place over 6,000 boxes each; a bin's difference has a standard deviation below 0.008."""
    crop, count = ResizedCrop(), 6000
    ours = crop_boxes(count, height, width, crop, generator()).T
    random.seed(0)
    image = Image.new("RGB", (width, height))
    drawn = [RandomResizedCropAndInterpolation.get_params(image, crop.scale, crop.ratio) for _ in range(count)]
    top, left, tall, wide = torch.tensor(drawn, dtype=torch.float64).T
    theirs = torch.stack([top, left, tall, wide], 1)

    def measures(box: torch.Tensor) -> list[torch.Tensor]:
        top, left, tall, wide = box.T
        return [
            histogram(tall * wide / (height * width), 0, 1.0001),
            histogram((wide / tall).log(), -0.5, 0.5),
            histogram(top / (height - tall).clamp(min=1), 0, 1.0001, 5),
            histogram(left / (width - wide).clamp(min=1), 0, 1.0001, 5),
        ]

    for one, other in zip(measures(ours), measures(theirs), strict=True):
        assert float((one - other).abs().max()) < 0.03
    assert bool((ours >= 0).all())
    assert bool((ours[:, 0] + ours[:, 2] <= height).all())
    assert bool((ours[:, 1] + ours[:, 3] <= width).all())


@pytest.mark.parametrize(("height", "width"), [(20, 100), (100, 21), (30, 31)])
def test_where_no_box_fits_the_crop_is_timms_central_one(height: int, width: int) -> None:
    crop = ResizedCrop(scale=(1.0, 1.0), ratio=(1.2, 1.3) if height == 30 else (3 / 4, 4 / 3))
    random.seed(0)
    expected = RandomResizedCropAndInterpolation.get_params(Image.new("RGB", (width, height)), crop.scale, crop.ratio)
    assert crop_boxes(5, height, width, crop, generator()).T.tolist() == [list(map(float, expected))] * 5


def test_erased_boxes_have_the_distribution_of_timms() -> None:
    """Rate, area and ratio over 4,000 images each; a bin's difference has a standard deviation below 0.015."""
    count, side = 4000, 24
    ours = erased_boxes(count, side, side, 0.6, generator()).T
    random.seed(0)
    torch.manual_seed(0)
    eraser = RandomErasing(0.6, mode="pixel", device="cpu")
    theirs = []
    for _ in range(count):
        canvas = torch.full((1, side, side), torch.nan)
        written = ~eraser(canvas)[0].isnan()
        rows, columns = written.any(1).nonzero(), written.any(0).nonzero()
        theirs.append([int(rows[0]), int(columns[0]), len(rows), len(columns)] if len(rows) else [0, 0, 0, 0])
    measured = []
    for boxes in (ours, torch.tensor(theirs, dtype=torch.float64)):
        top, left, tall, wide = boxes[boxes[:, 2] > 0].T
        measured.append(
            (
                torch.tensor([len(tall) / count]),
                histogram(tall * wide / side**2, 0, 0.4),
                histogram((tall / wide).log(), -1.5, 1.5),
                histogram(top / (side - tall), 0, 1.0001, 5),
                histogram(left / (side - wide), 0, 1.0001, 5),
            )
        )
    for one, other in zip(*measured, strict=True):
        assert float((one - other).abs().max()) < 0.045
    assert float(measured[0][0]) == pytest.approx(0.6, abs=0.03)


def test_erased_pixels_are_standard_noise_once_they_are_normalised_and_others_stay() -> None:
    mean, std = torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0.1, 0.2, 0.3])
    images = torch.full((300, 3, 16, 16), 5.0)
    erased = random_erasing(images.clone(), 1.0, mean, std, generator(), chunk=70)
    changed = (erased != 5.0).all(1)
    assert torch.equal(changed, (erased != 5.0).any(1))
    normalised = (erased - mean[:, None, None]) / std[:, None, None]
    noise = normalised.permute(1, 0, 2, 3)[:, changed]
    assert noise.mean(1).tolist() == pytest.approx([0, 0, 0], abs=0.03)
    assert noise.std(1).tolist() == pytest.approx([1, 1, 1], abs=0.03)
    assert float((noise.corrcoef() - torch.eye(3)).abs().max()) < 0.03


@pytest.mark.parametrize(
    "augment",
    [
        {"crop_padding": 4, "flip": True},
        {"resized_crop": {}, "flip": True},
        {"resized_crop": {"interpolation": "bicubic"}, "flip": True, "erasing": 0.5},
        {"crop_padding": 4, "flip": True, "mixup": 0.8, "cutmix": 1.0, "mix_mode": "batch"},
    ],
    ids=["shift", "resized crop", "erasing", "mixing"],
)
def test_pixels_have_the_moments_of_the_exact_pipeline(augment: dict[str, Any]) -> None:
    """Mean, standard deviation and histogram per channel over 960 images of 32 px each, with fixed seeds."""
    data = pictures(64, 32, 32)
    moments = []
    for pipeline in ("device", "exact"):
        made = make_pipeline(
            data, DatasetSpec(name="cifar100", image_size=32), recipe(32, pipeline, **augment), 4, 1, "cpu", workers=0
        )
        pixels = torch.cat([made.make(epoch, step).images for epoch in range(15) for step in range(2)])
        channels = pixels.transpose(0, 1).flatten(1)
        levels = torch.stack([histogram(channel, 0, 1) for channel in channels])
        sides = pixels[..., :16].mean((0, 2, 3)) - pixels[..., 16:].mean((0, 2, 3))
        moments.append((channels.mean(1), channels.std(1), levels, sides))
    for (one, other), tolerance in zip(zip(*moments, strict=True), (0.02, 0.02, 0.02, 0.03), strict=True):
        assert float((one - other).abs().max()) < tolerance


def test_images_are_flipped_as_often_as_in_the_exact_pipeline() -> None:
    half = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    half[..., :4] = 200
    data = ImageSet(half, torch.arange(40) % 4)
    for pipeline in ("device", "exact"):
        made = make_pipeline(
            data, DatasetSpec(name="cifar100"), recipe(40, pipeline, flip=True), 4, 1, "cpu", workers=0
        )
        left = torch.cat([made.make(epoch, 0).images[:, 0, 0, 0] > 0.5 for epoch in range(15)])
        assert float(left.float().mean()) == pytest.approx(0.5, abs=0.06)  # of 600 images: three standard deviations


# Mixing


@pytest.mark.parametrize(
    "augment",
    [
        {"mixup": 0.8},
        {"cutmix": 1.0},
        {"mixup": 0.8, "cutmix": 1.0, "mix_switch_prob": 0.3},
        {"mixup": 0.2, "mix_prob": 0.5},
    ],
)
def test_batches_are_mixed_by_timm_itself(augment: dict[str, Any]) -> None:
    wanted = recipe(smoothing=0.1, mix_mode="batch", **augment)
    images, labels = torch.rand(8, 3, 12, 12, generator=generator()), torch.arange(8) % 4
    np.random.seed(11)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    mixer = Mixer(wanted, 4, 3, torch.device("cpu"))
    for step in range(6):
        mixed, targets = mixer(images.clone(), labels, 2, step)
        outside = np.random.get_state()  # noqa: NPY002
        np.random.seed(seed_for(3, "mixup", 2, step) % 2**32)  # noqa: NPY002
        theirs = Mixup(
            mixup_alpha=augment.get("mixup", 0.0),
            cutmix_alpha=augment.get("cutmix", 0.0),
            prob=augment.get("mix_prob", 1.0),
            switch_prob=augment.get("mix_switch_prob", 0.5),
            label_smoothing=0.1,
            num_classes=4,
        )
        expected, soft = theirs(images.clone(), labels)
        np.random.set_state(outside)  # noqa: NPY002
        assert torch.equal(mixed, expected)
        assert targets is not None
        assert torch.equal(targets, soft)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_ratios_of_batches_follow_their_beta_distribution() -> None:
    mixer = Mixer(recipe(2, mixup=0.4, mix_mode="batch"), 2, 0, torch.device("cpu"))
    images, labels = torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])
    ratios = []
    for step in range(2000):
        targets = mixer(images, labels, 0, step)[1]
        assert targets is not None
        ratios.append(float(targets[0, 0]))
    assert np.mean(ratios) == pytest.approx(0.5, abs=0.03)
    assert np.var(ratios) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def test_only_a_share_of_images_is_mixed_when_the_recipe_says_so() -> None:
    labels = torch.arange(2000) % 2
    images = torch.zeros(2000, 3, 1, 1)
    targets = Mixer(recipe(2000, mixup=1.0, mix_prob=0.3), 2, 0, torch.device("cpu"))(images, labels, 0, 0)[1]
    assert targets is not None
    assert float((targets.max(1).values < 1).float().mean()) == pytest.approx(0.3, abs=0.04)


def test_an_odd_batch_cannot_be_mixed_as_a_batch() -> None:
    with pytest.raises(ValueError, match="9 is odd, but images of a batch are mixed in pairs"):
        recipe(9, mixup=0.5, mix_mode="batch")


# Parts of a batch


@pytest.mark.parametrize("rows", [[0, 1, 6, 7], [2, 5], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_a_part_of_a_batch_is_that_part_of_the_whole(rows: list[int]) -> None:
    wanted = recipe(**EVERYTHING)
    whole = DevicePipeline(pictures(), wanted, 4, 0, "cpu", strong_view=True)
    part = DevicePipeline(pictures(), wanted, 4, 0, "cpu", strong_view=True, rows=torch.tensor(rows))
    assert_part(whole.make(1, 1), part.make(1, 1), rows)


def assert_part(whole: Any, part: Any, rows: list[int]) -> None:
    """That ``part`` is made of ``rows`` of ``whole``."""
    assert torch.equal(part.images, whole.images[rows])
    assert torch.equal(part.strong, whole.strong[rows])
    for name in ("labels", "index", "targets"):
        assert torch.equal(getattr(part.batch, name), getattr(whole.batch, name)[rows])
    assert part.batch.progress == whole.batch.progress


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1], r"mixed in pairs \(i, 7 - i\), but rows \[0, 1\]"),
        ([7, 0], "must ascend"),
        ([0, 8], r"expected positions in \[0, 8\)"),
        ([], "expected positions"),
    ],
)
def test_rows_that_cannot_be_a_part_are_refused(rows: list[int], message: str) -> None:
    for pipeline in ("device", "exact"):
        with pytest.raises(KdbenchError, match=message):
            make_pipeline(
                pictures(),
                DatasetSpec(name="cifar100"),
                recipe(8, pipeline, mixup=0.5, mix_mode="batch"),
                4,
                0,
                "cpu",
                rows=torch.tensor(rows),
                workers=0,
            )


def test_rows_need_no_partners_where_nothing_is_mixed() -> None:
    made = DevicePipeline(pictures(), recipe(flip=True), 4, 0, "cpu", rows=torch.tensor([0, 1])).make(0, 0)
    assert len(made.images) == 2


# The rest


def test_every_augmentation_is_a_pure_function_of_seed_epoch_and_step() -> None:
    pipe = DevicePipeline(pictures(), recipe(**EVERYTHING), 4, 0, "cpu", frame=Frame(24))
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = [pipe.make(epoch, step) for epoch in range(2) for step in range(2)]
    again = [pipe.make(epoch, step) for epoch in (1, 0) for step in (1, 0)][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.batch.targets, other.batch.targets)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_iteration_begins_at_the_step_that_is_asked_for() -> None:
    for pipeline in ("device", "exact"):
        pipe = make_pipeline(pictures(), DatasetSpec(name="cifar100"), recipe(4, pipeline), 4, 0, "cpu", workers=0)
        assert [made.batch.progress for made in pipe.batches(1, 3)] == [8 / 20, 9 / 20]
        assert torch.equal(next(pipe.batches(1)).batch.index, pipe.make(1, 0).batch.index)


def test_the_strong_view_of_a_part_is_that_of_the_whole() -> None:
    images = torch.rand(6, 3, 8, 8, generator=generator())
    rows = torch.tensor([1, 4])
    assert torch.equal(strong_augment(images[rows], generator(5), rows, 6), strong_augment(images, generator(5))[rows])


class _Operations(TorchDispatchMode):
    """Notes every operation by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_on_the_device_neither_waits_for_it_nor_copies_to_it() -> None:
    """``item`` and ``nonzero`` wait for a device; ``lift_fresh`` stands for a tensor that was made from Python values."""
    pipe = DevicePipeline(pictures(), recipe(**EVERYTHING), 4, 0, "cpu", True, Frame(24), torch.tensor([0, 7]))
    pipe.make(0, 0)  # the order is made once per epoch
    with _Operations() as seen:
        pipe.make(0, 1)
    waiting = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero")
    assert len(seen.names) > 40
    assert not [name for name in seen.names if any(word in name for word in waiting)]
    with _Operations() as seen:
        torch.tensor([1, 2]).max().item()
    assert len([name for name in seen.names if any(word in name for word in waiting)]) == 2


def test_files_need_the_exact_pipeline() -> None:
    spec = DatasetSpec(name="imagenet1k", image_size=32)
    with pytest.raises(KdbenchError, match=r"the images of imagenet1k are files.*set pipeline: exact"):
        make_pipeline(files(), spec, recipe(), 4, 0, "cpu")
