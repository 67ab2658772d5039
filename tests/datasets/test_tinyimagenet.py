"""Tiny-ImageNet as its archive is unpacked, also as any folder of that layout; and what is refused of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.datasets.load import check_dataset, load_dataset
from kdbench.errors import KdbenchError
from kdbench.suite.dataset import DatasetSpec
from tests.conftest import Said
from tests.datasets.copies import jpeg, write

WNIDS = [f"n{number:08d}" for number in range(1, 201)]


def unpacked(data: Path, train: int = 3, val: int = 1) -> Path:
    """A copy with few images: 200 classes, the classes of the validation images in a list, test images without classes."""
    root = data / "tiny-imagenet-200"
    lines = []
    for at, wnid in enumerate(WNIDS):
        for number in range(train):
            write(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", jpeg(at + number))
        write(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(val):
            name = f"val_{199 - at + 200 * number}.JPEG"
            write(root / "val" / "images" / name, jpeg(at))
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    write(root / "val" / "val_annotations.txt", "".join(lines))
    write(root / "test" / "images" / "test_0.JPEG", jpeg(0))
    write(root / "wnids.txt", "\n".join(reversed(WNIDS)))
    write(root / "words.txt", "n00000001\tgoldfish, Carassius auratus\nn00000002\tfire salamander\nn99999999\tother\n")
    return root


def spec(**changed: Any) -> DatasetSpec:
    return DatasetSpec(**{"name": "tiny-imagenet", "image_size": 64, **changed})


def test_it_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    dataset = load_dataset(spec(), tmp_path)
    assert (len(dataset.train), len(dataset.test), len(dataset.validation)) == (600, 200, 200)
    assert dataset.train.labels.tolist() == [label for label in range(200) for _ in range(3)]
    assert dataset.test.labels.tolist() == list(range(200))
    assert dataset.test.name(0) == str(root / "val" / "images" / "val_199.JPEG")
    assert dataset.train.name(3) == str(root / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_0.JPEG")
    assert dataset.class_names is not None
    assert dataset.class_names[:3] == ("goldfish", "fire salamander", "n00000003")
    assert check_dataset(spec(), tmp_path) == (f"Tiny-ImageNet: {root / 'test'}: left out, its images have no classes",)
    assert len(dataset.for_split("validation").train) == 400


def test_any_folder_of_that_layout_is_read_and_classes_can_be_chosen(tmp_path: Path) -> None:
    unpacked(tmp_path)
    folder = {"name": "imagefolder", "folder": "tiny-imagenet-200", "num_classes": 200}
    assert len(load_dataset(spec(**folder), tmp_path).test) == 200
    some = load_dataset(spec(**folder, classes=WNIDS[3:5]), tmp_path)
    assert (some.class_names, some.test.labels.tolist()) == ((WNIDS[3], WNIDS[4]), [0, 1])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: (root / "val" / "images" / "val_7.JPEG").unlink(), "lacks val_7.JPEG, which val_annotations.txt names"),
        (lambda root: write(root / "val" / "images" / "x.JPEG", jpeg(0)), "does not say the class of x.JPEG"),
        (lambda root: write(root / "val" / "val_annotations.txt", "val_0.JPEG n00000001\n"), "line 1: found 'val_0.JPEG n0"),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), "holds images without classes; expected"),
        (lambda root: (root / "train" / WNIDS[5]).rename(root / "train" / "n5"), "lacks 1 of 200 classes: n5 of train"),
    ],
)  # fmt: skip
def test_copies_that_are_not_whole_are_refused_in_one_line(
    tmp_path: Path, change: Callable[[Path], object], problem: str
) -> None:
    change(unpacked(tmp_path))
    with pytest.raises(KdbenchError) as caught:
        load_dataset(spec(), tmp_path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_suite_is_planned_for_it_and_for_what_it_holds(kdbench: Callable[..., Said], tmp_path: Path) -> None:
    words = (
        "plan",
        "tiny-imagenet",
        "--protocol",
        "smoke",
        "--methods",
        "scratch",
        "--no-probe",
        "--out",
        tmp_path / "runs",
    )
    without = kdbench(*words)
    assert (without.status, "missing: Tiny-ImageNet: --data DIR" in without.out) == (2, True)
    unpacked(tmp_path, train=2)
    said = kdbench(*words, "--data", tmp_path)
    assert said.status == 0, said.err
    assert "3 cells: 3 pending" in said.out


@pytest.mark.slow
def test_the_suite_runs_on_it(kdbench: Callable[..., Said], tmp_path: Path) -> None:
    unpacked(tmp_path, train=2)
    words = ("--protocol", "smoke", "--pairs", "mixer-l--resnet-s", "--methods", "scratch,kd", "--data", tmp_path)
    said = kdbench("run", "tiny-imagenet", *words, "--out", tmp_path / "runs", "--on", "inprocess", "--device", "cpu")
    assert said.status == 0, said.err
    assert "2 done, 0 failed" in said.out
