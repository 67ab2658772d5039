"""ImageNet-1K in all its forms gives the same images, labels and splits; choices of classes; what a plan is told."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.data.images import Dataset, FileSet
from kdbench.datasets.imagenet import imagenet
from kdbench.datasets.imagenet.wnids import class_names, wnid_to_index, wnids
from kdbench.datasets.load import check_dataset, load_dataset
from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.suite.classlists import CLASS_LISTS
from kdbench.suite.dataset import DatasetSpec
from tests.datasets.copies import CLASSES, COPIES, NEED_PYARROW, PER_CLASS, as_folders, pictures, webdataset


def spec(**changed: Any) -> DatasetSpec:
    return DatasetSpec(**{"name": "imagenet1k", "image_size": 32, "classes": CLASSES, **changed})


def pixels(images: FileSet, position: int) -> bytes:
    return hashlib.sha256(images.image(position).tobytes()).digest()


def seen(dataset: Dataset) -> dict[str, Any]:
    """Everything of a data set that must not depend on how it lies on disk."""
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        "classes": (dataset.num_classes, dataset.class_names),
        "held out": dataset.held_out.tolist() if dataset.held_out is not None else None,
        **{name: part.labels.tolist() for name, part in parts.items()},
        **{f"pixels of {name}": [pixels(part, at) for at in range(len(part))] for name, part in parts.items()},
    }


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.__name__)
def test_every_layout_gives_the_same_images_labels_and_splits(copy: Callable[[Path], None], tmp_path: Path) -> None:
    if copy in NEED_PYARROW:
        pytest.importorskip("pyarrow")
    as_folders(tmp_path / "folders")
    copy(tmp_path / "copy")
    folders, other = load_dataset(spec(), tmp_path / "folders"), load_dataset(spec(), tmp_path / "copy")
    assert seen(other) == seen(folders)
    assert check_dataset(spec(), tmp_path / "copy") == ()
    # named for messages by what lies on disk
    assert str(tmp_path / "copy") in other.train.name(0)
    assert other.train.source.fingerprint() == load_dataset(spec(), tmp_path / "copy").train.source.fingerprint()  # type: ignore[union-attr]


def test_images_have_the_classes_of_their_folders_in_the_sorted_order(tmp_path: Path) -> None:
    as_folders(tmp_path)
    dataset = load_dataset(spec(), tmp_path)
    order = sorted(CLASSES)
    expected = sorted((order.index(item.wnid), item.stem, item.content) for item in pictures()["train"])
    assert dataset.train.labels.tolist() == [label for label, _, _ in expected]
    assert [Path(dataset.train.name(at)).read_bytes() for at in range(len(dataset.train))] == [
        content for _, _, content in expected
    ]
    assert dataset.class_names == tuple(class_names()[wnid] for wnid in order)
    assert dataset.num_classes == 3
    assert dataset.test.labels.bincount().tolist() == [PER_CLASS["val"]] * 3
    assert dataset.train.labels.dtype == torch.int64


def test_kept_labels_are_those_among_the_thousand(tmp_path: Path) -> None:
    as_folders(tmp_path)
    dataset = load_dataset(spec(labels="kept"), tmp_path)
    assert dataset.num_classes == 1000
    assert dataset.class_names is not None
    assert len(dataset.class_names) == 1000
    assert set(dataset.train.labels.tolist()) == {wnid_to_index(wnid) for wnid in CLASSES}
    assert {dataset.class_names[label] for label in dataset.test.labels} == {class_names()[wnid] for wnid in CLASSES}
    renumbered = load_dataset(spec(), tmp_path)
    assert [renumbered.train.name(at) for at in range(15)] == [dataset.train.name(at) for at in range(15)]


@pytest.mark.parametrize("copy", [as_folders, webdataset], ids=lambda copy: copy.__name__)
def test_choice_of_classes_leaves_the_others_where_they_are(copy: Callable[[Path], None], tmp_path: Path) -> None:
    copy(tmp_path)
    dataset = load_dataset(spec(classes=(CLASSES[2], CLASSES[0])), tmp_path)
    whole = load_dataset(spec(), tmp_path)
    assert dataset.num_classes == 2
    assert dataset.train.labels.bincount().tolist() == [PER_CLASS["train"]] * 2
    chosen = [at for at in range(len(whole.train)) if whole.train.labels[at] > 0]
    assert [pixels(dataset.train, at) for at in range(len(dataset.train))] == [pixels(whole.train, at) for at in chosen]
    # who is held out does not depend on which classes are chosen
    assert {dataset.validation.name(at) for at in range(len(dataset.validation))} == {
        whole.validation.name(at) for at in range(len(whole.validation)) if whole.validation.labels[at] > 0
    }


def test_held_out_images_are_in_no_training_split_that_is_measured_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_folders(tmp_path)
    dataset = load_dataset(spec(), tmp_path)
    # half of a class, where it has too few images for the usual twenty
    assert dataset.validation.labels.bincount().tolist() == [PER_CLASS["train"] // 2] * 3
    split = dataset.for_split("validation")
    train, held_out = ({part.name(at) for at in range(len(part))} for part in (split.train, split.validation))
    assert not train & held_out
    assert train | held_out == {dataset.train.name(at) for at in range(len(dataset.train))}
    assert dataset.for_split("test") is dataset
    monkeypatch.setattr(imagenet, "VALIDATION_PER_CLASS", 1)
    assert load_dataset(spec(), tmp_path).validation.labels.bincount().tolist() == [1] * 3


def test_who_is_held_out_depends_on_the_names_alone(tmp_path: Path) -> None:
    as_folders(tmp_path)
    dataset = load_dataset(spec(), tmp_path)
    assert dataset.held_out is not None
    expected = []
    for wnid in sorted(CLASSES):
        names = sorted(item.stem for item in pictures()["train"] if item.wnid == wnid)
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"kdbench imagenet1k {name}".encode()).digest())
        expected += sorted(ranked[: PER_CLASS["train"] // 2])
    assert [Path(dataset.train.name(int(at))).stem for at in dataset.held_out] == expected


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.__name__)
def test_source_survives_pickling_and_holds_no_open_file(copy: Callable[[Path], None], tmp_path: Path) -> None:
    if copy in NEED_PYARROW:
        pytest.importorskip("pyarrow")
    copy(tmp_path)
    train = load_dataset(spec(), tmp_path).train
    first = [pixels(train, at) for at in range(len(train))]  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(train))  # noqa: S301 - our own object
    assert [pixels(again, at) for at in range(len(again))] == first
    assert again.source.fingerprint() == train.source.fingerprint()  # type: ignore[union-attr]


def _pixels_of(part: FileSet, at: int, answer: Any) -> None:
    answer.send(pixels(part, at))


@pytest.mark.parametrize("copy", [COPIES[-2], COPIES[-1], COPIES[-6]], ids=lambda copy: copy.__name__)
def test_forked_process_reads_what_its_parent_has_open(copy: Callable[[Path], None], tmp_path: Path) -> None:
    if copy in NEED_PYARROW:
        pytest.importorskip("pyarrow")
    copy(tmp_path)
    train: Any = load_dataset(spec(), tmp_path).train
    expected = pixels(train, 4)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_pixels_of, args=(train, 4, send))
    process.start()
    assert receive.poll(30)
    assert receive.recv() == expected
    process.join(30)
    assert process.exitcode == 0


def test_checksum_changes_with_the_names_and_not_with_the_place(tmp_path: Path) -> None:
    as_folders(tmp_path / "a")
    as_folders(tmp_path / "b")
    checksum = load_dataset(spec(), tmp_path / "a").checksum()
    assert load_dataset(spec(), tmp_path / "b").checksum() == checksum
    image = next((tmp_path / "b" / "imagenet" / "train" / CLASSES[0]).iterdir())
    image.rename(image.with_name("n03000684_999.JPEG"))
    assert load_dataset(spec(), tmp_path / "b").checksum() != checksum


def test_checksum_of_archives_changes_with_the_size_of_a_member(tmp_path: Path) -> None:
    from tests.datasets.copies import archive_for_each_class, tar

    archive_for_each_class(tmp_path)
    checksum = load_dataset(spec(), tmp_path).checksum()
    files = [(f"{item.stem}.JPEG", item.content) for item in pictures()["train"] if item.wnid == CLASSES[0]]
    tar(tmp_path / "imagenet" / "train" / f"{CLASSES[0]}.tar", [(name, content + b"\0") for name, content in files])
    assert load_dataset(spec(), tmp_path).checksum() != checksum


# The classes


def test_classes_are_timms_in_the_sorted_order() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    assert list(wnids()) == info.label_names() == sorted(wnids())
    assert len(set(wnids())) == 1000
    assert list(class_names().values()) == info.label_descriptions()
    assert wnid_to_index("n01440764") == 0
    assert wnid_to_index("n15075141") == 999
    with pytest.raises(UnknownNameError, match="did you mean 'n01440764'"):
        wnid_to_index("n01440765")


def test_named_lists_are_of_imagenet_and_name_no_class_twice() -> None:
    sizes = {"imagenette": 10, "imagewoof": 10, "imagenet100": 100}
    assert {name: len(set(members)) for name, members in CLASS_LISTS.items()} == sizes
    assert all(wnid in wnids() for members in CLASS_LISTS.values() for wnid in members)
    dogs = class_names()
    assert [dogs[wnid].split(",")[0] for wnid in CLASS_LISTS["imagewoof"][:3]] == [
        "Shih-Tzu",
        "Rhodesian ridgeback",
        "beagle",
    ]


def test_list_of_classes_is_known_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from kdbench.datasets.imagenet.wnids import class_names\n"
        "assert len(class_names()) == 1000; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("n01440764", "n01440765"), "unknown class of ImageNet-1K 'n01440765'; did you mean"),
        (("n01440764", "n01440764"), "classes names n01440764 twice"),
        ((), "classes is an empty list"),
        ("imagenete", "did you mean 'imagenette'"),
    ],
)
def test_wrong_choice_of_classes_is_refused(tmp_path: Path, classes: Any, said: str) -> None:
    as_folders(tmp_path)
    with pytest.raises(KdbenchError, match=said):
        imagenet.load(tmp_path, spec(classes=classes))
