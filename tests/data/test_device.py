"""Digits, their splits, and the pipeline that makes training batches on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kdbench.data.augment import random_shift, strong_augment
from kdbench.data.batches import TrainingBatch
from kdbench.data.device import DevicePipeline
from kdbench.data.images import Dataset, ImageSet, first_of_every_class
from kdbench.datasets.load import load_dataset
from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.suite.datasets import DATASETS, find_dataset
from kdbench.suite.suite import Recipe

CHECKSUM = "830e0cebb3d890900d41624bdc6e203957c51871bede4248b4429d480a581d27"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}, **changes})


def numbered(count: int = 50, size: int = 8, classes: int = 5) -> ImageSet:
    """Images that are told apart by their one grey value, 1 to ``count``."""
    values = torch.arange(1, count + 1, dtype=torch.uint8)
    return ImageSet(values[:, None, None, None].expand(-1, 3, size, size).contiguous(), torch.arange(count) % classes)


def pipeline(data: ImageSet | None = None, seed: int = 0, strong: bool = False, **changes: Any) -> DevicePipeline:
    return DevicePipeline(data or numbered(), recipe(**changes), 5, seed, "cpu", strong)


def same(first: TrainingBatch, second: TrainingBatch) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return (a is None and b is None) or torch.equal(a, b)

    return (
        equal(first.images, second.images)
        and equal(first.strong, second.strong)
        and equal(first.batch.targets, second.batch.targets)
        and equal(first.batch.index, second.batch.index)
    )


# Digits


def test_digits_are_the_same_on_every_machine(digits: Dataset) -> None:
    assert digits.checksum() == CHECKSUM
    assert load_dataset("digits").checksum() == CHECKSUM


def test_catalog_says_what_the_data_set_holds(digits: Dataset) -> None:
    entry = find_dataset("digits")
    assert (digits.num_classes, len(digits.train)) == (entry.num_classes, entry.train_images)
    assert int(digits.train.labels.bincount().min()) == entry.train_per_class
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (997, 300, 500)
    assert all(count in entry.images for count in ("997", "300", "500"))


def test_splits_of_digits_share_no_image_and_leave_none_out(digits: Dataset) -> None:
    parts = [digits.split(name) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(load_digits().images)
    # A few of scikit-learn's digits are equal pixel by pixel: the splits are told apart by how often each image occurs.
    seen = sorted(image.numpy().tobytes() for part in parts for image in part.images)
    raw = torch.from_numpy(load_digits().images).float()[:, None] * (255 / 16)
    scaled = (
        torch.nn.functional.interpolate(raw, (32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    )
    assert seen == sorted(image.expand(3, -1, -1).contiguous().numpy().tobytes() for image in scaled)


def test_validation_and_test_hold_every_class_equally_often(digits: Dataset) -> None:
    assert digits.test.labels.bincount().tolist() == [50] * 10
    assert digits.validation.labels.bincount().tolist() == [30] * 10


def test_images_are_bytes_in_three_equal_channels(digits: Dataset) -> None:
    images = digits.train.images
    assert (images.dtype, tuple(images.shape[1:])) == (torch.uint8, (3, 32, 32))
    assert int(images.min()) == 0
    assert int(images.max()) > 200
    assert torch.equal(images[:, 0], images[:, 2])
    assert digits.train.labels.dtype == torch.int64


def test_labels_belong_to_their_images(digits: Dataset) -> None:
    """Shrunk back to 8 px, each test image is one of the originals with its label."""
    raw = load_digits()
    small = torch.nn.functional.interpolate(digits.test.images[:, :1].float(), (8, 8), mode="area")[:, 0].numpy()
    distance = ((small[:, None] - raw.images[None] * (255 / 16)) ** 2).sum(axis=(2, 3))
    assert (raw.target[distance.argmin(axis=1)] == digits.test.labels.numpy()).mean() > 0.99


def test_unknown_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load_dataset("digit")
    assert set(DATASETS) == {entry.name for entry in DATASETS.values()}


def test_first_images_of_every_class_are_taken_in_their_order() -> None:
    data = ImageSet(torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1), torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]))
    chosen = data.take(first_of_every_class(data.labels, 2))
    assert chosen.images.flatten().tolist() == [0, 1, 2, 3]
    assert chosen.labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(KdbenchError, match="images_per_class = 5, but class 0 has only 4"):
        first_of_every_class(data.labels, 5)


def test_checksum_follows_pixels_and_labels() -> None:
    a = numbered()
    other = ImageSet(a.images, a.labels.flip(0))
    assert Dataset("x", 5, a, a, a).checksum() != Dataset("x", 5, other, a, a).checksum()
    assert Dataset("x", 5, a, a, a).checksum() == Dataset("y", 5, numbered(), a, a).checksum()


# Batches


FULL: dict[str, Any] = {"augment": {"crop_padding": 2, "flip": True, "mixup": 0.3}, "label_smoothing": 0.1}


def test_batch_is_a_pure_function_of_seed_epoch_and_step() -> None:
    first, second = pipeline(strong=True, **FULL), pipeline(strong=True, **FULL)
    expected = [first.make(epoch, step) for epoch in range(3) for step in range(3)]
    torch.manual_seed(123)
    places = [(epoch, step) for epoch in range(3) for step in range(3)]
    for number in (7, 0, 4, 4, 8, 2):  # any order, any number of times
        assert same(second.make(*places[number]), expected[number])
    assert not any(same(expected[0], other) for other in expected[1:])
    assert not same(pipeline(seed=1, strong=True, **FULL).make(0, 0), expected[0])


def test_making_batches_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pipeline(strong=True, **FULL).make(0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_making_batches_leaves_the_data_alone() -> None:
    data = numbered()
    pipe = pipeline(data, strong=True, **FULL)
    for _ in pipe.batches(0):
        pass
    assert torch.equal(data.images, numbered().images)


def test_epoch_visits_each_image_at_most_once_and_each_epoch_in_another_order() -> None:
    pipe = pipeline()
    orders = []
    for epoch in range(3):
        batches = list(pipe.batches(epoch))
        assert len(batches) == len(pipe) == 3  # 50 images, 16 at a time, the incomplete batch dropped
        index = torch.cat([batch.batch.index for batch in batches])
        assert len(index.unique()) == len(index) == 48
        assert 0 <= int(index.min()) <= int(index.max()) < 50
        orders.append(index.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_images_labels_and_index_belong_together() -> None:
    data = numbered()
    for made in pipeline(data).batches(0):
        assert torch.equal(made.images, data.images[made.batch.index].float() / 255)
        assert torch.equal(made.batch.labels, data.labels[made.batch.index])
        assert made.batch.targets is None


def test_progress_runs_from_zero_towards_one() -> None:
    pipe = pipeline()
    seen = [pipe.make(epoch, step).batch for epoch in range(4) for step in range(3)]
    assert [batch.progress for batch in seen] == pytest.approx([n / 12 for n in range(12)])
    assert [batch.epoch for batch in seen] == [n // 3 for n in range(12)]


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(KdbenchError, match="batch_size = 51, but there are only 50"):
        pipeline(batch_size=51)
    assert len(pipeline(batch_size=50)) == 1


def test_label_smoothing_reaches_the_supervised_loss() -> None:
    batch = pipeline(label_smoothing=0.2).make(0, 0).batch
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.2)
    assert torch.equal(batch.task_loss(logits), expected)


# Augmentation


def test_shift_moves_each_image_by_its_own_offset_and_leaks_nothing_between_images() -> None:
    images = numbered(40, size=8).images
    shifted = random_shift(images, 3, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    for number, image in enumerate(shifted):
        values = set(image.unique().tolist())
        assert values <= {0, number + 1}
        assert number + 1 in values
    assert len({tuple((image[0] > 0).flatten().tolist()) for image in shifted}) > 10


def test_shift_equals_padding_and_cropping() -> None:
    images = torch.randint(0, 256, (30, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shifted = random_shift(images, 2, torch.Generator().manual_seed(1)).numpy()
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    offsets = set()
    for image, source in zip(shifted, padded, strict=True):
        fits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(source[:, y : y + 6, x : x + 7], image)]
        assert len(fits) == 1
        offsets.update(fits)
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))


def test_flip_mirrors_about_half_of_the_images_and_changes_nothing_else() -> None:
    images = torch.randint(0, 256, (200, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet(images, torch.arange(200) % 5)
    made = pipeline(data, batch_size=200, augment={"flip": True}).make(0, 0)
    source = images[made.batch.index].float() / 255
    mirrored = (made.images == source.flip(3)).flatten(1).all(dim=1)
    kept = (made.images == source).flatten(1).all(dim=1)
    assert bool((mirrored ^ kept).all())
    assert 70 < int(mirrored.sum()) < 130


def test_mixup_mixes_images_and_labels_by_the_same_ratio() -> None:
    data = numbered(50, classes=5)
    made = pipeline(data, augment={"mixup": 0.5}).make(0, 0)
    targets = made.batch.targets
    assert targets is not None
    assert torch.allclose(targets.sum(dim=1), torch.ones(16))
    assert bool((targets >= 0).all())
    own = made.batch.index.float() + 1
    grey = made.images[:, 0, 0, 0] * 255
    ratio = (grey - own.flip(0)) / (own - own.flip(0))
    expected = torch.nn.functional.one_hot(made.batch.labels, 5) * ratio[:, None]
    expected = expected + torch.nn.functional.one_hot(made.batch.labels.flip(0), 5) * (1 - ratio[:, None])
    assert torch.allclose(targets, expected, atol=1e-3)
    assert len(ratio.unique()) == 16
    assert torch.equal(made.batch.labels, data.labels[made.batch.index])


def test_mixup_and_label_smoothing_together_still_sum_to_one() -> None:
    targets = pipeline(**FULL).make(0, 0).batch.targets
    assert targets is not None
    assert torch.allclose(targets.sum(dim=1), torch.ones(16))
    assert float(targets.min()) == pytest.approx(0.1 / 5, abs=1e-6)


def test_mixup_ratios_follow_their_beta_distribution() -> None:
    data = ImageSet(torch.zeros(4000, 3, 1, 1, dtype=torch.uint8), torch.arange(4000) % 5)
    batch = pipeline(data, batch_size=4000, augment={"mixup": 0.4}).make(0, 0).batch
    assert batch.targets is not None
    differ = batch.labels != batch.labels.flip(0)
    ratio = batch.targets.gather(1, batch.labels[:, None])[differ, 0]
    assert float(ratio.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(ratio.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)


def test_strong_view_is_made_only_when_it_is_asked_for_and_changes_nothing_else() -> None:
    without, with_strong = pipeline(**FULL).make(0, 1), pipeline(strong=True, **FULL).make(0, 1)
    assert without.strong is None
    assert with_strong.strong is not None
    assert torch.equal(without.images, with_strong.images)
    assert with_strong.strong.shape == with_strong.images.shape


def test_strong_view_differs_stays_in_range_and_does_not_change_its_input() -> None:
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    strong = strong_augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    assert 0 <= float(strong.min()) <= float(strong.max()) <= 1
    assert bool(((strong - images).abs().flatten(1).mean(dim=1) > 0.05).all())
    erased = (strong == 0.5).all(dim=1).flatten(1).sum(dim=1)
    assert bool((erased >= 16).all())  # a square of a quarter of the height


def test_strong_view_leaks_nothing_between_images() -> None:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[3] = 0
    first, second = (strong_augment(batch, torch.Generator().manual_seed(1)) for batch in (images, changed))
    assert torch.equal(first[[0, 1, 2, 4, 5]], second[[0, 1, 2, 4, 5]])


def test_a_limit_keeps_images_that_are_spread_over_what_was_chosen(digits) -> None:
    few = replace(digits, limit=20)
    assert set(few.training(5).labels.tolist()) == set(range(10))
    assert len(few.training()) == len(few.measured("test")) == 20
    assert len(few.training(1)) == 10  # fewer than the limit
    assert set(few.measured("test").labels.tolist()) == set(range(10))
    assert replace(digits, limit=10_000).training().labels.equal(digits.train.labels)
