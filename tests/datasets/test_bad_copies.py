"""Copies of ImageNet-1K that are wrong, half copied or hostile: said in one line, before anything trains."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdbench.datasets import folders
from kdbench.datasets.imagenet import imagenet
from kdbench.datasets.imagenet.wnids import wnids
from kdbench.datasets.load import check_dataset, download_dataset, load_dataset
from kdbench.errors import KdbenchError
from kdbench.suite.dataset import DatasetSpec
from tests.datasets import copies
from tests.datasets.copies import CLASSES, as_folders, jpeg, pictures, tar, write

FIRST = "n01440764"


def spec(**changed: Any) -> DatasetSpec:
    return DatasetSpec(**{"name": "imagenet1k", "image_size": 32, "classes": CLASSES, **changed})


def refusal(data: Path | None, **changed: Any) -> str:
    """The message of ``load``, which ``check`` gives too."""
    messages = []
    for action in (imagenet.load, imagenet.check):
        with pytest.raises(KdbenchError) as caught:
            action(data, spec(**changed))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def thousand(data: Path, without: tuple[str, ...] = ()) -> Path:
    """All classes with one image each, the same for all."""
    content = jpeg(0)
    for wnid in wnids():
        for split, name in (("train", f"{wnid}_1"), ("val", f"ILSVRC2012_val_{wnids().index(wnid) + 1:08d}")):
            if wnid not in without:
                write(data / "imagenet" / split / wnid / f"{name}.JPEG", content)
    return data / "imagenet"


# Where it lies


def test_no_data_folder_is_said_with_the_two_ways_to_name_one() -> None:
    message = refusal(None)
    assert "--data DIR or $KDBENCH_DATA (not set)" in message
    assert "train/n01440764/*.JPEG" in message


def test_folder_that_is_not_there_or_a_file_is_said(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} does not exist" in refusal(tmp_path / "no")
    assert "is a file; expected the folder that holds imagenet/" in refusal(write(tmp_path / "data", "x"))


def test_folder_with_something_else_says_what_is_there_and_what_was_expected(tmp_path: Path) -> None:
    assert f"{tmp_path} is empty; expected train/n01440764/*.JPEG" in refusal(tmp_path)
    write(tmp_path / "imagenet" / "notes.txt", "x")
    (tmp_path / "imagenet" / "stuff").mkdir()
    message = refusal(tmp_path)
    assert f"{tmp_path / 'imagenet'} holds stuff/, notes.txt; expected train/n01440764/*.JPEG" in message
    assert "https://www.image-net.org" in message


def test_folder_of_another_name_is_found_through_the_suite_and_pointed_at_without(tmp_path: Path) -> None:
    as_folders(tmp_path)
    (tmp_path / "imagenet").rename(tmp_path / "mine")
    assert "mine/ has a train/: a suite that means it says so under dataset, folder: mine" in refusal(tmp_path)
    assert len(load_dataset(spec(folder="mine"), tmp_path).train) == 15
    assert f"{tmp_path / 'its'}, the suite's folder, does not exist" in refusal(tmp_path, folder="its")


@pytest.mark.parametrize("folder", ["../else", "/etc", "a/../../b"])
def test_suite_cannot_name_a_folder_outside_of_the_data_folder(tmp_path: Path, folder: str) -> None:
    assert "expected a path below --data, without '..'" in refusal(tmp_path, folder=folder)


def test_missing_validation_split_is_said(tmp_path: Path) -> None:
    copies.class_folders(tmp_path / "imagenet", "train")
    assert f"{tmp_path / 'imagenet'} has a training split, but no val/" in refusal(tmp_path)


def test_download_says_that_it_needs_an_account_and_which_layout_is_expected(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(KdbenchError, match=r"register at https://www\.image-net\.org .*DATA/imagenet/ with train/"):
            download_dataset(spec(), folder)
    as_folders(tmp_path)
    download_dataset(spec(), tmp_path)


# Classes


def test_subset_where_all_classes_are_wanted_names_those_that_lack_and_how_to_say_it(tmp_path: Path) -> None:
    as_folders(tmp_path)
    message = refusal(tmp_path, classes=None)
    assert (
        f"{tmp_path / 'imagenet' / 'train'} lacks 997 of 1,000 classes: n01443537, n01484850, n01491361, ..." in message
    )
    assert (
        "it holds 3 classes: a suite that wants these says so under dataset, classes: [n01440764, n02102040, ...]"
        in message
    )


def test_subset_that_has_a_name_is_called_by_it(tmp_path: Path) -> None:
    from kdbench.suite.classlists import CLASS_LISTS

    for wnid in CLASS_LISTS["imagenette"]:
        write(tmp_path / "train" / wnid / "a.jpg", jpeg(0))
    assert "says so under dataset, classes: imagenette" in refusal(tmp_path, classes=None)


def test_class_that_is_missing_from_either_split_is_named(tmp_path: Path) -> None:
    root = thousand(tmp_path, without=(wnids()[7],))
    assert f"{root / 'train'} lacks 1 of 1,000 classes: {wnids()[7]};" in refusal(tmp_path, classes=None)
    write(root / "train" / wnids()[7] / "a.JPEG", jpeg(0))
    assert f"{root / 'val'} lacks 1 of 1,000 classes: {wnids()[7]};" in refusal(tmp_path, classes=None)


def test_whole_set_of_classes_with_too_few_images_is_used_and_noted(tmp_path: Path) -> None:
    thousand(tmp_path)
    whole = DatasetSpec(name="imagenet1k", image_size=32)
    assert check_dataset(whole, tmp_path) == (
        "ImageNet-1K: train holds 1,000 images; the official split has 1,281,167",
        "ImageNet-1K: val holds 1,000 images; the official split has 50,000",
    )
    dataset = load_dataset(whole, tmp_path)
    assert dataset.train.labels.tolist() == list(range(1000))
    assert dataset.num_classes == 1000
    assert len(dataset.validation) == 0  # no class has an image to spare


@pytest.mark.parametrize("copy", [copies.as_folders, copies.webdataset, copies.archive_for_each_class])
def test_wanted_class_that_is_not_there_is_named(copy: Callable[[Path], None], tmp_path: Path) -> None:
    copy(tmp_path)
    message = refusal(tmp_path, classes=(*CLASSES, "n01443537"))
    assert re.search(r"imagenet(/train)? lacks 1 of 4 classes: n01443537$", message)


def test_folder_that_is_no_wnid_is_named(tmp_path: Path) -> None:
    as_folders(tmp_path)
    write(tmp_path / "imagenet" / "train" / "tench" / "a.jpg", jpeg(0))
    assert f"{tmp_path / 'imagenet' / 'train' / 'tench'} is no class; expected folders named by WNID" in refusal(
        tmp_path
    )


def test_folders_one_level_too_deep_are_pointed_at(tmp_path: Path) -> None:
    as_folders(tmp_path)
    train = tmp_path / "imagenet" / "train"
    train.rename(tmp_path / "inner")
    train.mkdir()
    (tmp_path / "inner").rename(train / "part1")
    message = refusal(tmp_path)
    assert f"{train / 'part1'} is no class; expected folders named by WNID, such as n01440764" in message
    assert "; n01440764 lies inside it, one level too deep" in message


def test_class_of_a_larger_imagenet_is_refused_unless_some_classes_are_chosen(tmp_path: Path) -> None:
    root = thousand(tmp_path)
    write(root / "train" / "n00007846" / "a.JPEG", jpeg(0))
    assert "is of n00007846, no class of ILSVRC 2012" in refusal(tmp_path, classes=None)
    assert len(load_dataset(spec(), tmp_path).train) == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_class_is_named(tmp_path: Path, split: str) -> None:
    as_folders(tmp_path)
    folder = tmp_path / "imagenet" / split / FIRST
    for image in folder.iterdir():
        image.unlink()
    assert f"{folder} holds nothing; expected images" in refusal(tmp_path)
    write(folder / "README.txt", "x")
    assert f"{folder} holds only README.txt and the like; expected images" in refusal(tmp_path)


def test_folders_inside_a_class_are_refused(tmp_path: Path) -> None:
    as_folders(tmp_path)
    write(tmp_path / "imagenet" / "train" / FIRST / "images" / "a.JPEG", jpeg(0))
    assert f"{tmp_path / 'imagenet' / 'train' / FIRST} holds 1 folder (images); expected only images" in refusal(
        tmp_path
    )


def test_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    as_folders(tmp_path)
    write(tmp_path / "imagenet" / "train" / FIRST / "n01440764_boxes.txt", "x")
    write(tmp_path / "imagenet" / "train" / CLASSES[0] / "Thumbs.db", "x")
    write(tmp_path / "imagenet" / "train" / FIRST / ".DS_Store", "x")
    (tmp_path / "imagenet" / "train" / ".cache").mkdir()
    (note,) = check_dataset(spec(), tmp_path)
    assert (
        f"{tmp_path / 'imagenet' / 'train'}: 2 files left out: 1 .txt, 1 .db, such as {FIRST}/n01440764_boxes" in note
    )
    assert len(load_dataset(spec(), tmp_path).train) == 15


# Files


def test_empty_files_and_links_to_nothing_are_named_before_a_run(tmp_path: Path) -> None:
    as_folders(tmp_path)
    folder = tmp_path / "imagenet" / "train" / FIRST
    empty = write(folder / "n01440764_17.JPEG", b"")
    assert f"{empty} is empty: copy again" in refusal(tmp_path)
    (folder / "n01440764_99.JPEG").symlink_to(tmp_path / "gone")
    assert f"{empty} is empty, and 1 more of the 16 looked at: copy again" in refusal(tmp_path)
    notes = check_dataset(spec(undecodable=0.2), tmp_path)
    assert notes == (f"ImageNet-1K: {empty} is empty, and 1 more of the 16 looked at; another image takes the place",)


def test_sizes_of_a_large_split_are_asked_for_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_folders(tmp_path)
    monkeypatch.setattr(folders, "SIZES_LOOKED_AT", 5)
    for image in (tmp_path / "imagenet" / "train").glob("*/*"):
        write(image, b"")
    assert "is empty, and 4 more of the 5 looked at" in refusal(tmp_path)


def test_links_in_a_circle_end_in_a_message(tmp_path: Path) -> None:
    as_folders(tmp_path)
    train = tmp_path / "imagenet" / "train"
    (train / "n02979186").symlink_to(train / "n02979186")
    message = refusal(tmp_path)
    assert f"{train} cannot be read (n02979186: Too many levels of symbolic links)" in message
    (train / "n02979186").unlink()
    (train / "n02979186").symlink_to(train)  # a class that holds itself
    assert f"{train / 'n02979186'} holds 4 folders" in refusal(tmp_path, classes=(*CLASSES, "n02979186"))
    assert len(load_dataset(spec(), tmp_path).train) == 15


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    as_folders(tmp_path)
    folder = tmp_path / "imagenet" / "train" / FIRST
    folder.chmod(0)
    try:
        assert f"{folder} cannot be read (Permission denied)" in refusal(tmp_path)
    finally:
        folder.chmod(0o755)


def broken() -> dict[str, bytes]:
    whole = jpeg(3)
    return {
        "text": b"<html>not found</html>",
        "cut": whole[: len(whole) // 2],
        "head": whole[:20],
        "magic": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "empty": b"",
    }


@pytest.mark.parametrize("name", broken())
def test_file_that_does_not_decode_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    as_folders(tmp_path / "folders")
    copies.archive_for_each_class(tmp_path / "archives")
    content = broken()[name]
    path = write(tmp_path / "folders" / "imagenet" / "train" / FIRST / "n01440764_1.JPEG", content)
    files = [("n01440764_1.JPEG", content), ("n01440764_2.JPEG", jpeg(1))]
    archive = tar(tmp_path / "archives" / "imagenet" / "train" / f"{FIRST}.tar", files)
    for data, where in ((tmp_path / "folders", str(path)), (tmp_path / "archives", f"{archive}: n01440764_1.JPEG")):
        train: Any = load_dataset(spec(undecodable=0.1), data).train
        with pytest.raises(OSError, match=r"does not decode|is empty") as caught:
            train.image(0)
        assert str(caught.value).startswith(where)
        assert "\n" not in str(caught.value)
        assert train.image(1).mode == "RGB"


def test_file_that_disappears_is_named(tmp_path: Path) -> None:
    as_folders(tmp_path)
    train: Any = load_dataset(spec(), tmp_path).train
    Path(train.name(0)).unlink()
    with pytest.raises(OSError, match=r"n01440764_10\.JPEG"):
        train.image(0)


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    as_folders(tmp_path)
    content = bytearray(png("RGBA"))
    content[16:24] = side.to_bytes(4, "big") * 2  # IHDR
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    write(tmp_path / "imagenet" / "train" / FIRST / "n01440764_1.JPEG", bytes(content))
    train: Any = load_dataset(spec(), tmp_path).train
    with pytest.raises(OSError, match=r"n01440764_1\.JPEG does not decode: it has .*more than 89,478,485 pixels"):
        train.image(0)


def png(mode: str) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGBA", (4, 4), (200, 10, 10, 100))
    (image.convert("RGB").quantize(4) if mode == "P" else image).save(
        file, "PNG", **({"transparency": b"\x10\x20"} if mode == "P" else {})
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "content", [jpeg(1, "CMYK"), jpeg(1, "L"), png("RGBA"), png("P")], ids=["CMYK", "grey", "PNG", "palette"]
)
def test_odd_images_become_rgb(tmp_path: Path, content: bytes) -> None:
    as_folders(tmp_path)
    write(tmp_path / "imagenet" / "train" / FIRST / "n01440764_1.JPEG", content)
    image = load_dataset(spec(), tmp_path).train.image(0)
    assert image.mode == "RGB"
    assert (
        image.tobytes()
        == Image.open(io.BytesIO(content)).convert("RGBA" if content[1:4] == b"PNG" else "RGB").convert("RGB").tobytes()
    )


def test_orientation_in_the_exif_data_is_not_applied(tmp_path: Path) -> None:
    as_folders(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "imagenet" / "train" / FIRST / "n01440764_1.JPEG", jpeg(1, exif=exif))
    assert load_dataset(spec(), tmp_path).train.image(0).size == (14, 10)


# Labels of a flat validation folder


def test_flat_validation_folder_without_a_list_says_which_lists_are_known(tmp_path: Path) -> None:
    copies.with_devkit(tmp_path)
    root = tmp_path / "ILSVRC2012"
    for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
        (root / "ILSVRC2012_devkit_t12" / "data" / name).unlink()
        message = refusal(tmp_path)
        if name == "meta.mat":
            assert "holds numbers in the devkit's own order; expected meta.mat or map_clsloc.txt beside it" in message
    assert f"{root / 'val'} holds images, not class folders, and no list of their classes" in message
    assert "LOC_val_solution.csv (Kaggle), ILSVRC2012_validation_ground_truth.txt with meta.mat (devkit)" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1\n", "has 1 lines, none for ILSVRC2012_val_00000002: was it copied whole?"),
        ("1\nx\n", "line 2 is 'x'; expected a number from 1 to 1,000"),
        ("1\n1001\n", "line 2 is '1001'; expected a number from 1 to 1,000"),
        (b"\xff\xfe\xff", "cannot be read (it is no text)"),
    ],
)
def test_wrong_ground_truth_is_said_with_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    copies.with_devkit(tmp_path)
    path = tmp_path / "ILSVRC2012" / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    write(path, content)
    message = refusal(tmp_path)
    assert str(path) in message
    assert said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n",
            "has no line for ILSVRC2012_val_00000002",
        ),
        (
            "ImageId,PredictionString\nILSVRC2012_val_00000001\n",
            "line 2 is 'ILSVRC2012_val_00000001'; expected ImageId,WNID",
        ),
        ("ILSVRC2012_val_00000001,n00000001 1 2 3 4\n", "line 1 names the class 'n00000001'; expected a WNID"),
    ],
)
def test_wrong_list_of_kaggle_is_said_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    copies.of_kaggle(tmp_path)
    write(tmp_path / "LOC_val_solution.csv", content)
    assert f"{tmp_path / 'LOC_val_solution.csv'}" in refusal(tmp_path)
    assert said in refusal(tmp_path)


def test_list_of_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    copies.of_kaggle(tmp_path)
    write(tmp_path / "LOC_synset_mapping.txt", "".join(f"{wnid} word\n" for wnid in reversed(wnids())))
    assert "LOC_synset_mapping.txt: line 1 is 'n15075141 word'; expected n01440764" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"), [(b"hello", "is no meta.mat of the devkit"), (b"", "is no meta.mat of the devkit")]
)
def test_wrong_meta_file_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    copies.with_devkit(tmp_path)
    write(tmp_path / "ILSVRC2012" / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", content)
    assert said in refusal(tmp_path)


def test_incomplete_mapping_is_said(tmp_path: Path) -> None:
    copies.with_mapping_file(tmp_path)
    path = write(tmp_path / "imagenet1k" / "map_clsloc.txt", f"{FIRST} 1 tench\n")
    assert f"{path} numbers 1 classes of ILSVRC 2012; expected 1 to 1,000" in refusal(tmp_path)
    write(path, "tench\n")
    assert "line 1 is 'tench'; expected WNID, number, name" in refusal(tmp_path)


# Archives


def test_missing_shard_is_named(tmp_path: Path) -> None:
    copies.webdataset(tmp_path)
    (tmp_path / "imagenet" / "imagenet-train-000001.tar").unlink()
    assert f"{tmp_path / 'imagenet'} lacks imagenet-train-000001.tar of 4 files" in refusal(tmp_path)
    (tmp_path / "imagenet" / "imagenet-train-000000.tar").unlink()
    assert "lacks imagenet-train-000001.tar of 3 files" in refusal(tmp_path)


def test_missing_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    copies.plain_parquet(tmp_path)
    (tmp_path / "imagenet-1k" / "train" / "part-00001-of-00002.parquet").unlink()
    assert "lacks part-00001-of-00002.parquet of 2 files" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [100, 3000, 0.5, -1024])
def test_archive_that_is_cut_short_is_named(tmp_path: Path, kept: float) -> None:
    copies.webdataset(tmp_path)
    path = tmp_path / "imagenet" / "imagenet-train-000002.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # without the empty blocks that end an archive
    count = end if kept == -1024 else int(kept * len(whole)) if kept < 1 else int(kept)
    path.write_bytes(whole[:count])
    message = refusal(tmp_path)
    assert f"{path} is cut short" in message or f"{path} is no whole tar archive" in message
    assert "was it copied whole?" in message


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    copies.webdataset(tmp_path)
    path = write(tmp_path / "imagenet" / "imagenet-train-000002.tar", b"<html>" * 1000)
    assert f"{path} is no whole tar archive" in refusal(tmp_path)


def test_compressed_archives_are_refused_with_what_to_do(tmp_path: Path) -> None:
    import gzip

    copies.webdataset(tmp_path)
    path = tmp_path / "imagenet" / "imagenet-train-000002.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert f"{path} is compressed, so single images cannot be read from it; unpack it: gunzip {path}" in refusal(
        tmp_path
    )
    other = write(tmp_path / "hub" / "imagenet" / "data" / "train_images_0.tar.gz", b"\x1f\x8b")
    assert f"{other} is compressed" in refusal(tmp_path / "hub")


@pytest.mark.parametrize("name", ["../evil.JPEG", "/etc/evil.JPEG", "a/../../evil.JPEG"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str, form: int) -> None:
    copies.archive_for_each_class(tmp_path)
    path = tar(tmp_path / "imagenet" / "train" / f"{FIRST}.tar", [("a.JPEG", jpeg(0)), (name, jpeg(0))], form=form)
    assert f"{path} holds a member named {name}; expected names that stay inside" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_archives_are_refused(tmp_path: Path, kind: bytes) -> None:
    copies.archive_for_each_class(tmp_path)
    path = tmp_path / "imagenet" / "train" / f"{FIRST}.tar"
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("n01440764_99.JPEG")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert f"{path} holds n01440764_99.JPEG, which is a link or the like" in refusal(tmp_path)


def test_long_names_of_members_are_read(tmp_path: Path) -> None:
    copies.archive_for_each_class(tmp_path)
    path = tmp_path / "imagenet" / "train" / f"{FIRST}.tar"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        folder = "/".join(["train", "a" * 90, FIRST])
        tar(path, [(f"{folder}/n01440764_{at}.JPEG", jpeg(at)) for at in range(3)], form=form)
        train: Any = load_dataset(spec(), tmp_path).train
        assert train.labels.bincount().tolist() == [3, 5, 5]
        assert train.name(2) == f"{path}: {folder}/n01440764_2.JPEG"
        assert train.image(2).tobytes() == Image.open(io.BytesIO(jpeg(2))).tobytes()


def test_shard_with_an_image_without_a_class_is_refused(tmp_path: Path) -> None:
    copies.webdataset(tmp_path)
    members = [*copies.pair(pictures()["train"][0]), ("n01440764_5.jpg", jpeg(0))]
    path = tar(tmp_path / "imagenet" / "imagenet-train-000001.tar", members)
    assert f"{path} holds n01440764_5.jpg, but not its class, n01440764_5.cls" in refusal(tmp_path)


@pytest.mark.parametrize("label", [b"1000", b"-1", b"tench", b"", b"\xff"])
def test_shard_with_a_wrong_class_is_refused(tmp_path: Path, label: bytes) -> None:
    copies.webdataset(tmp_path)
    tar(tmp_path / "imagenet" / "imagenet-train-000001.tar", [("a.jpg", jpeg(0)), ("a.cls", label)])
    assert "expected a class from 0 to 999 or a WNID" in refusal(tmp_path)


def test_labels_in_another_order_are_noticed_by_the_official_names(tmp_path: Path) -> None:
    copies.webdataset(tmp_path)
    path = tar(
        tmp_path / "imagenet" / "imagenet-train-000001.tar", [("n01440764_5.jpg", jpeg(0)), ("n01440764_5.cls", b"449")]
    )
    message = refusal(tmp_path)
    assert f"{path} gives n01440764_5.jpg the class {wnids()[449]}, but its name says n01440764" in message
    assert "numbered from 0 in the order of sorted WNIDs" in message


def test_archive_without_images_is_named(tmp_path: Path) -> None:
    copies.archive_for_each_class(tmp_path)
    path = tar(tmp_path / "imagenet" / "train" / f"{FIRST}.tar", [("a.txt", b"x")])
    assert f"{path} holds no images" in refusal(tmp_path)


def test_empty_members_are_named(tmp_path: Path) -> None:
    copies.archive_for_each_class(tmp_path)
    path = tar(tmp_path / "imagenet" / "train" / f"{FIRST}.tar", [("a.JPEG", b""), ("b.JPEG", jpeg(0))])
    assert f"{path}: a.JPEG is empty: copy again" in refusal(tmp_path)
    assert "is empty; another image takes the place" in check_dataset(spec(undecodable=0.5), tmp_path)[0]


# Tables


def test_tables_that_are_damaged_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    copies.plain_parquet(tmp_path)
    path = tmp_path / "imagenet-1k" / "train" / "part-00000-of-00002.parquet"
    whole = path.read_bytes()
    write(path, whole[: len(whole) // 2])
    assert f"{path} cannot be read (" in refusal(tmp_path)
    image = {"bytes": jpeg(0), "path": None}
    for columns, said in (
        ({"picture": [image], "label": [0]}, "has the columns picture, label; expected image and label"),
        ({"image": [image], "label": [-1]}, "has the label -1; expected 0 to 999"),
        ({"image": [{"bytes": None, "path": "a.JPEG"}], "label": [0]}, "only names files and does not hold the images"),
        ({"image": [{"width": 4}], "label": [0]}, "expected the bytes of encoded images"),
        ({"image": [{**image, "path": "n01440764_1.JPEG"}], "label": [5]}, "but its name says n01440764"),
    ):
        parquet.write_table(pyarrow.table(columns), path)
        message = refusal(tmp_path)
        assert str(path) in message
        assert said in message


def test_images_of_tables_may_have_no_names(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    copies.plain_parquet(tmp_path)
    for path in (tmp_path / "imagenet-1k" / "train").iterdir():
        table = parquet.read_table(path)
        cells = [cell["bytes"] for cell in table["image"].to_pylist()]
        parquet.write_table(pyarrow.table({"image": cells, "label": table["label"]}), path, row_group_size=2)
    train: Any = load_dataset(spec(), tmp_path).train
    assert len(train) == 15
    assert train.name(0).endswith(f"row {int(train.source.rows[0])}")
    contents = {Image.open(io.BytesIO(item.content)).tobytes() for item in pictures()["train"]}
    assert {train.image(at).tobytes() for at in range(15)} == contents


def test_large_row_groups_are_noted(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    copies.plain_parquet(tmp_path)
    path = tmp_path / "imagenet-1k" / "train" / "part-00000-of-00002.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.take(list(range(len(table))) * 4), path)
    (note,) = check_dataset(spec(), tmp_path)
    assert "one image costs the reading of a row group of 32" in note


def test_tables_without_pyarrow_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write(tmp_path / "imagenet" / "train" / "a.parquet", b"x")
    write(tmp_path / "imagenet" / "val" / "a.parquet", b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow: pip install 'kdbench[huggingface]'" in refusal(tmp_path)


def test_snapshot_that_was_not_fetched_is_said(tmp_path: Path) -> None:
    copies.hub_of_shards(tmp_path)
    copy = tmp_path / "hub" / "datasets--timm--imagenet-1k-wds"
    write(copy / "refs" / "main", "9999")
    assert f"{copy / 'snapshots'} holds 0123abcd, old; expected 9999, which refs/main names" in refusal(tmp_path)
    write(copy / "refs" / "main", "0123abcd")
    next((copy / "blobs").glob("*train-0001*")).unlink()
    assert "imagenet1k-train-0001.tar cannot be read (No such file or directory)" in refusal(tmp_path)
