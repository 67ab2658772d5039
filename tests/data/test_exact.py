"""The exact pipeline and evaluation: timm's own tensors, parts of batches, images that do not decode."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms

from kdbench.data.batches import Frame
from kdbench.data.exact import ExactPipeline
from kdbench.data.images import FileSet, Images, ImageSet
from kdbench.data.pipeline import make_pipeline
from kdbench.data.transforms import EvaluationView, training_transform
from kdbench.data.views import KeptImages, decoded, evaluation_batches
from kdbench.errors import KdbenchError
from kdbench.seeding import seed_for
from kdbench.suite.dataset import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec
from kdbench.suite.recipe import Augment, ResizedCrop
from tests.data.pictures import files, pictures, recipe
from tests.data.test_augment import EVERYTHING, assert_part

MEAN, STD = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
CPU = torch.device("cpu")
SEED = 5


def exact(data: Images | None = None, size: int | None = 64, rows: Tensor | None = None, **kind: Any) -> Any:
    """An exact pipeline that works in this process; ``strong`` and ``say`` are its own, the rest is augmentation."""
    strong, say = kind.pop("strong", False), kind.pop("say", None)
    spec = DatasetSpec(name="imagenet1k", image_size=size) if size else DatasetSpec(name="cifar100")
    wanted = recipe(pipeline="exact", **kind)
    return make_pipeline(data or files(), spec, wanted, 4, SEED, "cpu", strong, rows=rows, workers=0, say=say)


def seeded(epoch: int, place: int) -> None:
    """The global random state that an image is augmented with."""
    seed = seed_for(SEED, "sample", epoch, place)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


# timm's own tensors

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "crop and flip": ({"resized_crop": {}, "flip": True}, {"color_jitter": None}),
    "no flip": ({"resized_crop": {"interpolation": "bicubic"}}, {"hflip": 0.0, "color_jitter": None, "interpolation": "bicubic"}),
    "randaugment": (
        {"resized_crop": {}, "flip": True, "randaugment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4},
    ),
    "erasing": ({"resized_crop": {}, "flip": True, "erasing": 0.6}, {"color_jitter": None, "re_prob": 0.6}),
    "jitter and erasing": (
        {"resized_crop": {"scale": [0.3, 0.9], "ratio": [0.5, 1.5]}, "flip": True, "color_jitter": 0.3, "erasing": 0.9},
        {"color_jitter": 0.3, "re_prob": 0.9, "scale": (0.3, 0.9), "ratio": (0.5, 1.5)},
    ),
    "all of DeiT's": (
        {
            "resized_crop": {"interpolation": "bicubic"},
            "flip": True,
            "randaugment": "rand-m9-mstd0.5-inc1",
            "color_jitter": 0.4,
            "erasing": 0.25,
        },
        {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "re_prob": 0.25, "interpolation": "bicubic"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("where", ["memory", "files"])
def test_tensors_equal_those_of_timms_transform_for_the_same_seed(kind: str, where: str) -> None:
    augment, arguments = KINDS[kind]
    data = pictures() if where == "memory" else files()
    theirs = create_transform(
        **{
            "input_size": 224,
            "is_training": True,
            "interpolation": "random",
            "re_mode": "pixel",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            **arguments,
        }
    )
    made = exact(data, 224, **augment).make(1, 1)
    assert made.images.shape == (8, 3, 224, 224)
    for row, image in enumerate(made.images):
        seeded(1, 8 + row)
        expected = theirs(data.image(int(made.batch.index[row])))
        assert torch.allclose((image - MEAN) / STD, expected, rtol=0, atol=1e-6)


def test_padded_crops_equal_torchvisions_for_the_same_seed() -> None:
    data = pictures(size := 20, 32, 32)
    theirs = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    made = exact(data, None, crop_padding=4, flip=True).make(0, 0)
    for row, image in enumerate(made.images):
        seeded(0, row)
        assert torch.equal(image, theirs(data.image(int(made.batch.index[row]))))
    assert len(data) == size


def test_without_a_random_crop_files_are_cut_from_the_centre_and_images_in_memory_resized() -> None:
    data = files()
    made = exact(data).make(0, 0)
    theirs = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])
    assert torch.equal(made.images[3], theirs(data.image(int(made.batch.index[3]))))
    assert exact(data, crop_padding=4).make(0, 0).images.shape == (8, 3, 64, 64)
    assert exact(pictures(), crop_padding=4).make(0, 0).images.shape == (8, 3, 64, 64)


def test_images_of_several_sizes_are_refused_with_what_to_set() -> None:
    with pytest.raises(KdbenchError, match=r"differ in size \(.* px, .* px\); set image_size"):
        ExactPipeline(files(), recipe(pipeline="exact"), 4, 0, "cpu", workers=0).make(0, 0)


def test_randaugment_alone_is_timms_on_images_of_their_own_size() -> None:
    data = pictures(20, 40, 40)
    theirs = create_transform(
        input_size=40, is_training=True, auto_augment="rand-m9-n4", interpolation="random", separate=True
    )[1]
    made = exact(data, None, randaugment="rand-m9-n4").make(0, 0)
    for row, image in enumerate(made.images):
        seeded(0, row)
        assert torch.equal(image, transforms.functional.to_tensor(theirs(data.image(int(made.batch.index[row])))))


# Pure functions


def test_an_exact_batch_does_not_depend_on_the_parts_it_is_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exact(strong=True, **EVERYTHING)
    expected = [whole.make(0, step) for step in range(2)]
    monkeypatch.setattr("kdbench.data.exact.PART_SIZE", 3)
    for step in range(2):
        assert_part(expected[step], exact(strong=True, **EVERYTHING).make(0, step), list(range(8)))


def test_an_exact_batch_is_a_pure_function_of_seed_epoch_and_step_and_leaves_the_random_state_alone() -> None:
    kind = {**EVERYTHING, "randaugment": "rand-m9-mstd0.5-inc1"}
    first, second = exact(strong=True, **kind), exact(strong=True, **kind)
    expected = [first.make(epoch, step) for epoch in range(2) for step in range(2)]
    seeded(9, 9)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    for number in (3, 0, 2, 2):
        made = second.make(number // 2, number % 2)
        assert_part(expected[number], made, list(range(8)))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not torch.equal(expected[0].images, expected[2].images)


def test_an_image_is_augmented_anew_in_every_epoch_and_each_copy_on_its_own() -> None:
    made = exact(repeats=2, resized_crop={}).make(0, 0)
    assert torch.equal(made.batch.index[0::2], made.batch.index[1::2])
    assert not torch.equal(made.images[0], made.images[1])


@pytest.mark.parametrize("rows", [[0, 1, 6, 7], [2, 5]])
@pytest.mark.parametrize("mode", ["batch", "image"])
def test_a_part_of_an_exact_batch_is_that_part_of_the_whole(rows: list[int], mode: str) -> None:
    kind = {**EVERYTHING, "mix_mode": mode, "cutmix": 1.0 if mode == "batch" else 0.0}
    data = files()
    read: list[int] = []
    part = exact(
        CountedFiles(data.source, data.positions, data.labels, read=read), rows=torch.tensor(rows), strong=True, **kind
    )
    for step in range(2):
        assert_part(exact(data, strong=True, **kind).make(1, step), part.make(1, step), rows)
    assert len(read) == 2 * len(rows)  # no others are decoded


class CountedFiles(FileSet):
    """Notes which images are decoded."""

    def __init__(self, *args: Any, read: list[int]) -> None:
        super().__init__(*args)
        object.__setattr__(self, "read", read)

    def image(self, position: int) -> Any:
        self.__dict__["read"].append(position)
        return super().image(position)


# Images that do not decode


def test_the_first_image_that_does_not_decode_stops_a_run_unless_the_data_admits_some() -> None:
    data = files(undecodable=0.0, damaged=frozenset([6]))
    with pytest.raises(
        KdbenchError,
        match=r"^train/6.png does not decode \(image file is truncated\): "
        r"1 of 20 images have failed, more than undecodable = 0 admits$",
    ):
        epoch(exact(data, resized_crop={}))


def epoch(pipe: Any, number: int = 0) -> Any:
    """All batches of an epoch."""
    return list(pipe.batches(number))


def test_another_image_of_its_class_takes_the_place_of_one_that_does_not_decode() -> None:
    said: list[str] = []
    data = files(undecodable=0.1, damaged=frozenset([6, 10]))
    pipe, whole = exact(data, say=said.append, batch_size=20, resized_crop={}), exact(batch_size=20, resized_crop={})
    for number in range(3):
        (made,), (expected,) = epoch(pipe, number), epoch(whole, number)
        assert torch.equal(made.batch.labels, expected.batch.labels)
        assert torch.equal(made.batch.labels, data.labels[made.batch.index])
        changed = (made.batch.index != expected.batch.index).nonzero()[:, 0]
        assert sorted(expected.batch.index[changed].tolist()) == [6, 10]
        assert made.batch.index[changed].tolist() == [
            14,
            14,
        ]  # the next of class 2, also after 10, which does not decode
        kept = (made.batch.index == expected.batch.index).nonzero()[:, 0]
        assert torch.equal(made.images[kept], expected.images[kept])
    assert sorted(said) == [
        f"train/{name}.png does not decode (image file is truncated); train/14.png takes its place" for name in (10, 6)
    ]


def test_where_a_whole_class_is_damaged_others_take_its_place_with_their_own_label() -> None:
    damaged = frozenset(range(1, 20, 4))
    (made,) = epoch(exact(files(undecodable=0.5, damaged=damaged), batch_size=20, resized_crop={}))
    assert set(made.batch.labels.tolist()) == {0, 2, 3}
    assert torch.equal(made.batch.labels, files().labels[made.batch.index])


def test_a_run_stops_when_more_images_fail_than_the_data_admits_and_when_none_decodes() -> None:
    with pytest.raises(KdbenchError, match=r"3 of 20 images have failed, more than undecodable = 0.1 admits"):
        epoch(exact(files(undecodable=0.1, damaged=frozenset([1, 5, 7])), batch_size=20, resized_crop={}))
    with pytest.raises(KdbenchError, match=r"does not decode .*, and no other image does"):
        epoch(exact(files(undecodable=1.0, damaged=frozenset(range(20))), resized_crop={}))


# Evaluation


def evaluate(data: Images, view: EvaluationView, positions: range | None = None, **more: Any) -> Tensor:
    return torch.cat(list(evaluation_batches(data, view, CPU, positions, **more)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size", "crop"), [(56, 0.875), (32, 0.9), (48, 1.0)])
def test_evaluation_shows_timms_evaluation_transform(interpolation: str, size: int, crop: float) -> None:
    theirs = create_transform(
        input_size=size, is_training=False, crop_pct=crop, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    view = EvaluationView(size, crop, interpolation, exact=True)
    for data in (files(), pictures()):
        expected = torch.stack([theirs(data.image(position)) for position in range(len(data))])
        assert torch.equal(evaluate(data, view), expected)
    on_device = evaluate(pictures(), EvaluationView(size, crop, interpolation))
    assert float((on_device - expected).abs().max()) <= 2 / 255 + 1e-6


def test_evaluation_of_a_tall_image_in_memory_cuts_the_same_centre_as_timm() -> None:
    for height, width in ((71, 40), (40, 71), (33, 90)):
        data = pictures(2, height, width)
        exactly = evaluate(data, EvaluationView(24, 0.9, exact=True))
        assert float((evaluate(data, EvaluationView(24, 0.9)) - exactly).abs().max()) <= 2 / 255 + 1e-6


def test_evaluation_keeps_native_images_as_they_are_and_to_the_positions_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdbench.data.views.EVALUATION_BATCH", 8)
    monkeypatch.setattr("kdbench.data.views._PART_SIZE", 3)
    data = pictures(30)
    assert torch.equal(evaluate(data, EvaluationView()), data.images.float() / 255)
    assert torch.equal(evaluate(data, EvaluationView(), range(5, 23)), data.images[5:23].float() / 255)
    for view in (EvaluationView(24), EvaluationView(24, exact=True)):
        assert torch.equal(evaluate(data, view, range(5, 23), workers=0), evaluate(data, view, workers=0)[5:23])
        sizes = [len(batch) for batch in evaluation_batches(data, view, CPU, range(5, 23), workers=0)]
        assert sizes == [8, 8, 2]


@pytest.mark.parametrize(("free", "times"), [(float("inf"), [20, 4]), (20 * 3 * 32**2 * 9.9, [20, 20, 4])])
def test_images_are_decoded_once_where_memory_allows_it(
    monkeypatch: pytest.MonkeyPatch, free: float, times: list[int]
) -> None:
    made: list[int] = []

    def counted(images: Images, view: EvaluationView, positions: range, **more: Any) -> Iterator[Tensor]:
        made.append(len(positions))
        return decoded(images, view, positions, **more)

    view, parts = EvaluationView(32), (range(20), range(20), range(5, 9), range(5, 9))
    expected = [evaluate(files(), view, positions) for positions in parts]
    monkeypatch.setattr("kdbench.data.views.free_host_memory", lambda: free)
    monkeypatch.setattr("kdbench.data.views.decoded", counted)
    kept = KeptImages(files(), CPU, 0)
    for positions, images in zip(parts, expected, strict=True):
        assert torch.equal(torch.cat(list(kept.batches(view, positions))), images)
    assert made == times


def test_a_test_image_that_does_not_decode_is_black_or_stops_the_run() -> None:
    said: list[str] = []
    shown = evaluate(files(undecodable=0.1, damaged=frozenset([3])), EvaluationView(32), say=said.append)
    assert shown.flatten(1).max(1).values.eq(0).nonzero().flatten().tolist() == [3]
    assert said == ["train/3.png does not decode (image file is truncated); a black image takes its place"]
    with pytest.raises(KdbenchError, match=r"train/3\.png does not decode"):
        evaluate(files(damaged=frozenset([3])), EvaluationView(32))


def test_files_cannot_be_evaluated_without_a_size() -> None:
    with pytest.raises(KdbenchError, match="an evaluation needs a size"):
        evaluate(files(), EvaluationView())


def test_pictures_in_memory_and_in_files_are_the_same_to_the_exact_pipeline() -> None:
    data = files(1)
    pixels = torch.from_numpy(np.asarray(data.image(0)).copy()).permute(2, 0, 1)[None]
    both: list[Images] = [data, ImageSet(pixels, data.labels)]
    first, second = (exact(one, batch_size=1, resized_crop={}).make(0, 0) for one in both)
    assert torch.equal(first.images, second.images)


def test_randaugment_at_its_highest_level_keeps_no_bit_of_an_image_and_does_not_fail() -> None:
    augment = Augment(resized_crop=ResizedCrop(), randaugment="rand-m10-inc1")
    _, secondary, _ = training_transform(augment, Frame(32), None).transforms
    (posterize,) = (operation for operation in secondary.transforms[0].ops if operation.name == "PosterizeIncreasing")
    posterize.prob = 1.0
    image = pictures(1).image(0)
    assert not np.asarray(posterize(image)).any()
    posterize.magnitude = 5  # two bits
    assert set(np.unique(np.asarray(posterize(image)))) <= {0, 64, 128, 192}
