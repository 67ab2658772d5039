"""Real images of ImageNet, where $KDBENCH_DATA has some; and what the command line says of the data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.datasets.folders import entries
from kdbench.datasets.imagenet.wnids import wnid_to_index, wnids
from kdbench.datasets.load import check_dataset, load_dataset
from kdbench.suite.dataset import DatasetSpec
from tests.conftest import Said
from tests.datasets.copies import CLASSES, as_folders, write

DATA = Path(os.environ.get("KDBENCH_DATA", "/nowhere"))


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "imagenet-mini").is_dir(), reason="needs imagenet-mini below $KDBENCH_DATA")
def test_ten_classes_load_and_decode() -> None:
    spec = DatasetSpec(name="imagenet1k", folder="imagenet-mini", classes="imagenette", image_size=224)
    assert check_dataset(spec, DATA) == ()
    dataset = load_dataset(spec, DATA)
    assert dataset.train.labels.bincount().tolist() == [100] * 10
    assert dataset.test.labels.bincount().tolist() == [30] * 10
    assert dataset.validation.labels.bincount().tolist() == [20] * 10
    assert dataset.class_names is not None
    assert dataset.class_names[0] == "tench, Tinca tinca"
    assert dataset.class_names[9] == "parachute, chute"
    assert all(dataset.train.image(at).mode == "RGB" for at in range(0, len(dataset.train), 50))
    kept = load_dataset(spec.model_copy(update={"labels": "kept"}), DATA)
    assert kept.test.labels.unique().tolist() == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "imagenet-1k-sample").is_dir(), reason="needs imagenet-1k-sample below $KDBENCH_DATA")
def test_folders_of_all_thousand_classes_have_timms_numbers() -> None:
    from timm.data import ImageNetInfo

    found = entries(DATA / "imagenet-1k-sample", DATA, "sample").folders
    assert found == wnids()
    official = ImageNetInfo().label_names()
    assert [official[wnid_to_index(wnid)] for wnid in found] == list(found)


def test_data_sets_are_listed_also_where_the_suite_says_the_number_of_classes(
    kdbench: Callable[..., Said],
) -> None:
    said = kdbench("list", "datasets")
    assert said.status == 0
    assert next(line for line in said.out.splitlines() if line.startswith("imagefolder")).split()[1] == "any"
    assert next(line for line in said.out.splitlines() if line.startswith("imagenet1k")).split()[1] == "1000"
    rows = json.loads(kdbench("list", "datasets", "--json").out)
    assert {row["name"]: row["classes"] for row in rows}["imagefolder"] is None


def test_what_is_worth_knowing_of_the_files_is_noted_before_a_run(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from kdbench.launch import choose
    from kdbench.matrix.request import Request

    as_folders(tmp_path)
    write(tmp_path / "imagenet" / "train" / CLASSES[0] / "boxes.txt", "x")
    spec = DatasetSpec(name="imagenet1k", classes=CLASSES, image_size=32)
    plan = SimpleNamespace(
        suite=SimpleNamespace(dataset=spec), request=Request(data=str(tmp_path)), under=None, cells=()
    )
    notes: list[str] = []
    choose.ready_data(plan, notes.append, lambda done, size: None)  # type: ignore[arg-type]
    note = f"{tmp_path / 'imagenet' / 'train'}: 1 file left out: 1 .txt, such as {CLASSES[0]}/boxes.txt"
    assert notes == [f"ImageNet-1K: {note}"]
