"""Any folders of classes: their splits and numbers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.datasets import imagefolder
from kdbench.datasets.load import check_dataset, download_dataset, load_dataset
from kdbench.errors import KdbenchError
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.problems import Contradiction
from kdbench.suite.suite import merge
from tests.conftest import Said
from tests.datasets.copies import jpeg, write

CLASSES = ("Zebra", "ant", "cat 10", "cat 9")


def spec(**changed: Any) -> DatasetSpec:
    return DatasetSpec(**{"name": "imagefolder", "image_size": 32, "folder": "pets", "num_classes": 4, **changed})


def fill(data: Path, **counts: int) -> Path:
    """``counts`` images of each class in every split, of all extensions."""
    for split, count in counts.items():
        for at, name in enumerate(CLASSES):
            for number in range(count):
                ending = (".jpg", ".JPEG", ".jpeg")[number % 3]
                write(data / "pets" / split / name / f"{number:03d}{ending}", jpeg(100 * at + number))
    return data / "pets"


def refusal(data: Path | None, **changed: Any) -> str:
    messages = []
    for action in (imagefolder.load, imagefolder.check):
        with pytest.raises(KdbenchError) as caught:
            action(data, spec(**changed))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def names(part: Any) -> set[str]:
    return {part.name(at) for at in range(len(part))}


def test_classes_are_numbered_in_the_plain_sorted_order_of_their_names(tmp_path: Path) -> None:
    root = fill(tmp_path, train=3, test=2)
    dataset = load_dataset(spec(), tmp_path)
    assert dataset.class_names == ("Zebra", "ant", "cat 10", "cat 9")
    assert dataset.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert dataset.train.name(7) == str(root / "train" / "cat 10" / "001.JPEG")
    assert len(dataset.test) == 8
    assert check_dataset(spec(), tmp_path) == ()
    download_dataset(spec(), tmp_path)


def test_validation_and_test_folders_are_what_they_are_called(tmp_path: Path) -> None:
    root = fill(tmp_path, train=12, test=2, val=3)
    dataset = load_dataset(spec(), tmp_path)
    assert dataset.held_out is None
    assert dataset.for_split("validation") is dataset
    assert {Path(name).parents[1] for name in names(dataset.validation)} == {root / "val"}
    assert {Path(name).parents[1] for name in names(dataset.test)} == {root / "test"}
    (root / "val").rename(root / "validation")
    assert len(load_dataset(spec(), tmp_path).split("validation")) == 12


@pytest.mark.parametrize("only", ["val", "test"])
def test_without_both_a_tenth_of_each_class_is_held_out(tmp_path: Path, only: str) -> None:
    root = fill(tmp_path, train=23, **{only: 1})
    dataset = load_dataset(spec(), tmp_path)
    assert {Path(name).parents[1] for name in names(dataset.test)} == {root / only}
    assert dataset.validation.labels.bincount().tolist() == [2] * 4
    split = dataset.for_split("validation")
    assert not names(split.train) & names(split.split("validation"))
    assert names(split.train) | names(split.split("validation")) == names(dataset.train)
    with pytest.raises(KdbenchError, match="still in its training split"):
        dataset.split("validation")


def test_small_classes_hold_out_one_image_and_never_their_only_one(tmp_path: Path) -> None:
    root = fill(tmp_path, train=3, test=1)
    for name in ("001.JPEG", "002.jpeg"):
        (root / "train" / "ant" / name).unlink()
    dataset = load_dataset(spec(), tmp_path)
    assert dataset.validation.labels.tolist() == [0, 2, 3]


def test_chosen_classes_are_renumbered_or_keep_their_numbers(tmp_path: Path) -> None:
    fill(tmp_path, train=3, test=1)
    chosen = ("cat 9", "ant")
    renumbered = load_dataset(spec(classes=chosen), tmp_path)
    assert renumbered.class_names == ("ant", "cat 9")
    assert set(renumbered.train.labels.tolist()) == {0, 1}
    kept = load_dataset(spec(classes=chosen, labels="kept"), tmp_path)
    assert kept.class_names == CLASSES
    assert set(kept.train.labels.tolist()) == {1, 3}
    assert "unknown class 'cat' in" in refusal(tmp_path, classes=("cat", "ant"))
    assert "classes names ant twice" in refusal(tmp_path, classes=("ant", "ant"))


def test_wrong_number_of_classes_is_said_with_both_numbers(tmp_path: Path) -> None:
    root = fill(tmp_path, train=2, test=1)
    message = refusal(tmp_path, num_classes=5)
    assert f"{root / 'train'} holds 4 folders, but the suite says num_classes: 5; first Zebra, last cat 9" in message


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, train=2, test=1)
    (root / "test" / "ant").rename(root / "test" / "bee")
    assert f"{root / 'test'} lacks 1 of 4 classes: ant of train" in refusal(tmp_path)
    fill(tmp_path, test=1)
    assert f"{root / 'train'} lacks 1 of 5 classes: bee of test" in refusal(tmp_path)
    assert len(load_dataset(spec(classes=CLASSES), tmp_path).test) == 4


def test_missing_splits_are_said_with_what_is_there(tmp_path: Path) -> None:
    assert "--data DIR or $KDBENCH_DATA (not set) names the folder that holds pets/" in refusal(None)
    assert f"{tmp_path / 'pets'} does not exist" in refusal(tmp_path)
    root = fill(tmp_path, train=2)
    assert f"{root} holds train/; expected train/CLASS/FILE and val/CLASS/FILE or test/CLASS/FILE" in refusal(tmp_path)
    (root / "train").rename(root / "test")
    assert f"{root} holds test/; expected" in refusal(tmp_path)
    write(root / "train" / "a.jpg", jpeg(0))
    assert f"{root / 'train'} holds no folders" in refusal(tmp_path)


def test_empty_and_nested_classes_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, train=2, test=1)
    (root / "test" / "ant" / "000.jpg").unlink()
    assert f"{root / 'test' / 'ant'} holds nothing; expected images" in refusal(tmp_path)
    write(root / "test" / "ant" / "deeper" / "a.jpg", jpeg(0))
    assert f"{root / 'test' / 'ant'} holds 1 folder (deeper); expected only images" in refusal(tmp_path)


def test_suite_without_folder_or_number_of_classes_is_refused() -> None:
    for missing in ("folder", "num_classes"):
        with pytest.raises((KdbenchError, Contradiction, ValueError), match=r"needs the (folder|number)"):
            spec(**{missing: None})


@pytest.mark.parametrize("folder", ["../pets", "/tmp"])  # noqa: S108 - only a name
def test_folder_stays_below_the_data_folder(tmp_path: Path, folder: str) -> None:
    assert "expected a path below --data, without '..'" in refusal(tmp_path, folder=folder)


def test_files_of_other_kinds_are_named_with_their_ending(tmp_path: Path) -> None:
    root = fill(tmp_path, train=2, test=1)
    for number in range(3):
        write(root / "train" / "ant" / f"{number}.heic", b"x")
    write(root / "train" / "ant" / "4.webp", jpeg(0))
    (note,) = check_dataset(spec(), tmp_path)
    assert note == f"Image folders: {root / 'train'}: 3 files left out: 3 .heic, such as ant/0.heic"
    assert len(load_dataset(spec(), tmp_path).train) == 9


@pytest.mark.parametrize(
    ("train", "test", "difference"),
    [
        ("caf\u00e9", "cafe\u0301", "Unicode form"),
        ("cafe\u0301", "caf\u00e9", "Unicode form"),
        ("\ufb01g", "fig", "Unicode characters"),
        ("big cat", "big  cat", "blanks"),
        ("Bee", "bee", "case"),
    ],
)
def test_a_class_that_only_looks_the_same_is_named_with_the_difference(
    tmp_path: Path, train: str, test: str, difference: str
) -> None:
    root = fill(tmp_path, train=2, test=1)
    (root / "train" / "ant").rename(root / "train" / train)
    (root / "test" / "ant").rename(root / "test" / test)
    said = refusal(tmp_path)
    assert f"it has {test!a}, which differs from {train!a} in {difference} only: rename one of them" in said
    assert f"lacks {test}, which the suite chooses; it has {train!a}" in refusal(
        tmp_path, classes=tuple(sorted({test, *CLASSES} - {"ant"}))
    )


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_batches_and_limits_larger_than_a_folder_are_refused_before_anything(
    kdbench: Callable[..., Said], write_suite: Callable[..., Path], tmp_path: Path, verb: str
) -> None:
    fill(tmp_path, train=6, test=1)
    dataset = {"name": "imagefolder", "folder": "pets", "num_classes": 4, "image_size": 32, "images_per_class": None}
    exact = {"recipes": {name: {"pipeline": "exact", "batch_size": size} for name, size in (("cnn", 8), ("token", 64))}}

    def said(**changes: Any) -> str:
        path = write_suite(dataset=dataset, **merge(exact, changes))
        found = kdbench(verb, path, "--data", tmp_path, "--out", tmp_path / "runs", "--device", "cpu")
        assert (found.status, found.out) == (2, "")
        assert not (tmp_path / "runs").exists()
        return found.err

    large = "suite tiny: batch_size = 64 of recipe token is larger than the 24 images that a student trains on"
    assert said() == f"kdbench: {large}\n"
    small = {"token": {"batch_size": 8}}
    teacher = "batch_size = 100 of recipe cnn is larger than the 24 images that a teacher trains on"
    assert said(recipes=small) == f"kdbench: suite tiny: {teacher}\n"
    for limit in ("images_per_class", "teacher_images_per_class"):
        changes = {"protocols": {"short": {limit: 7, "teacher": {"batch_size": 8}}}, "recipes": small}
        assert said(**changes) == "kdbench: images_per_class = 7, but class 0 has only 6 images\n"
