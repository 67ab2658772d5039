"""Links and pipes in a data folder: a link is followed within the folder that the user named, and never out of it."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.datasets import cifar100, tinyimagenet
from kdbench.datasets.imagenet.shards import refuse_gaps
from kdbench.datasets.imagenet.tarindex import members
from kdbench.datasets.load import load_dataset
from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError
from kdbench.suite.dataset import DatasetSpec
from tests.datasets import copies
from tests.datasets.copies import CLASSES, as_folders, write

FIRST = CLASSES[0]

FORMS: list[Callable[[Path], None]] = [
    copies.as_folders,
    copies.of_kaggle,
    copies.with_devkit,
    copies.with_mapping_file,
    copies.with_lines_of_wnids,
    copies.official_archives,
    copies.webdataset,
    copies.plain_parquet,
    copies.saved_to_disk,
]
SPEC = DatasetSpec(name="imagenet1k", image_size=32, classes=CLASSES)


def places(data: Path) -> list[Path]:
    """Every folder, the first image of each, and every other file."""
    files = [path for path in sorted(data.rglob("*")) if path.is_file()]
    images = {path.parent: path for path in reversed(files) if path.suffix == ".JPEG"}
    others = [path for path in files if path.suffix != ".JPEG"]
    return [*(path for path in sorted(data.rglob("*")) if path.is_dir()), *images.values(), *others]


@pytest.mark.parametrize("form", FORMS)
def test_link_out_of_the_data_folder_is_refused_by_name_wherever_it_lies(
    tmp_path: Path, form: Callable[[Path], None]
) -> None:
    data = tmp_path / "data"
    form(data)
    labels = load_dataset(SPEC, data).train.labels.tolist()
    refused = 0
    for place in places(data):
        kept, outside = tmp_path / "kept", tmp_path / "outside"
        place.rename(kept)
        kept.rename(outside) if kept.is_dir() else write(outside, "SECRET")
        place.symlink_to(outside)
        said = ""
        try:  # what no form needs is not opened
            assert load_dataset(SPEC, data).train.labels.tolist() == labels
        except KdbenchError as error:
            said = str(error)
        if said:
            assert re.search(f"{place}(/[^ ]*)? leads out of {data} by a link, to {outside}", said)
            assert "SECRET" not in said
            assert "\n" not in said
            refused += 1
        place.unlink()
        if outside.is_file():
            outside.unlink()
            kept.rename(place)
        else:
            assert said
            outside.rename(place)
    assert refused > 1


def test_links_within_the_data_folder_are_followed_and_it_may_be_one_itself(tmp_path: Path) -> None:
    data = tmp_path / "data"
    as_folders(data)
    plain = load_dataset(SPEC, data)
    store = data / "store"
    store.mkdir()
    (data / "imagenet").rename(store / "all")
    (data / "imagenet").symlink_to(store / "all")
    for number, place in enumerate([*(store / "all" / "train").iterdir(), *(store / "all").glob("val/*/*.JPEG")]):
        place.rename(store / f"{number}{place.suffix}")
        place.symlink_to(os.path.relpath(store / f"{number}{place.suffix}", place.parent))
    (tmp_path / "named").symlink_to(data)
    linked = load_dataset(SPEC, tmp_path / "named")
    assert linked.train.labels.tolist() == plain.train.labels.tolist()
    assert linked.test.source.read(0).size == (14, 10)


def test_image_that_becomes_a_link_or_a_pipe_is_not_opened(tmp_path: Path) -> None:
    as_folders(tmp_path / "data")
    source = load_dataset(SPEC, tmp_path / "data").train.source
    image = Path(source.name(0))
    shutil.copy(image, tmp_path / "outside.JPEG")
    image.unlink()
    image.symlink_to(tmp_path / "outside.JPEG")
    with pytest.raises(RefusedFileError, match="leads out of"):
        source.read(0)
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(RefusedFileError, match="is no regular file"):
        source.read(0)
    with pytest.raises(KdbenchError, match="is no regular file"):
        load_dataset(SPEC, tmp_path / "data")


@pytest.mark.parametrize("form", [copies.of_kaggle, copies.webdataset, copies.plain_parquet, copies.saved_to_disk])
def test_pipe_in_the_place_of_a_file_is_refused_and_nothing_waits(tmp_path: Path, form: Callable[[Path], None]) -> None:
    form(tmp_path)
    place = next(path for path in places(tmp_path) if path.is_file() and path.suffix not in (".txt", ".json"))
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(KdbenchError, match=r"is no regular file|no list of their classes"):
        load_dataset(SPEC, tmp_path)


def test_lists_of_classes_that_lead_out_show_nothing_of_what_is_there(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "TOP\tSECRET\n")
    data = tmp_path / "data"
    for split in ("train/n01443537/images/a.JPEG", "val/images/a.JPEG"):
        write(data / tinyimagenet.FOLDER / split, copies.jpeg(0))
    spec = DatasetSpec(name="tiny-imagenet", image_size=64, num_classes=1, classes=("n01443537",))
    for name, content in (("val/val_annotations.txt", "a.JPEG\tn01443537\n"), ("words.txt", "")):
        (data / tinyimagenet.FOLDER / name).symlink_to(secret)
        with pytest.raises(RefusedFileError, match=f"{name} leads out of") as refused:
            load_dataset(spec, data)
        assert "SECRET" not in str(refused.value)
        (data / tinyimagenet.FOLDER / name).unlink()
        write(data / tinyimagenet.FOLDER / name, content)


def test_nothing_is_downloaded_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "fetch_file", lambda *_, **__: pytest.fail("it is fetched"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / cifar100.FOLDER).symlink_to(tmp_path / "outside")
    with pytest.raises(RefusedFileError, match="leads out of"):
        cifar100.download(tmp_path / "data")
    assert not list((tmp_path / "outside").iterdir())


def test_numbers_without_end_and_headers_without_octal_digits_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match=r"lacks x-2\.tar and 99,999,"):
        refuse_gaps(tmp_path, ["x-1.tar", f"x-{'9' * 200}.tar"])
    copies.webdataset(tmp_path)
    archive = next(tmp_path.rglob("*.tar"))
    whole = archive.read_bytes()
    for at, field in ((124, b"99999999999\0"), (148, b"999999\0 ")):  # size and checksum
        archive.write_bytes(whole[:at] + field + whole[at + len(field) :])
        with pytest.raises(KdbenchError, match="is no whole tar archive"):
            members(archive, tmp_path)
    large = tarfile.TarInfo("x")
    large.type, large.size = tarfile.XHDTYPE, 1 << 32
    archive.write_bytes(large.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(archive, 1 << 33)
    with pytest.raises(KdbenchError, match="extended header of 4,294,967,296 bytes"):
        members(archive, tmp_path)


def test_list_of_numbers_or_a_table_beyond_what_python_reads_is_refused(tmp_path: Path) -> None:
    copies.with_devkit(tmp_path)
    (numbers,) = tmp_path.rglob("ILSVRC2012_validation_ground_truth.txt")
    numbers.write_text("9" * 5000)
    with pytest.raises(KdbenchError, match="line 1 is"):
        load_dataset(SPEC, tmp_path)
    write(numbers.with_name("LOC_val_solution.csv"), f"{'x' * 200_000},{FIRST}\n")
    with pytest.raises(KdbenchError, match=r"LOC_val_solution\.csv cannot be read"):
        load_dataset(SPEC, tmp_path)
