"""The same few images of ImageNet-1K, written to disk in every form in which the data set is handed around."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kdbench.datasets.imagenet.wnids import wnids

#: Not in the sorted order, so that a mistake in numbering shows.
CLASSES = ("n03000684", "n01440764", "n02102040")
PER_CLASS = {"train": 5, "val": 2}


class Picture(NamedTuple):
    """An encoded image, its class and its official name without extension."""

    wnid: str
    stem: str
    content: bytes


def jpeg(seed: int, mode: str = "RGB", **options: object) -> bytes:
    """A small image of noise."""
    channels = {"RGB": 3, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (10, 14, channels), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.frombytes(mode, (14, 10), pixels.tobytes())
    image.save(file, "JPEG", **options)
    return file.getvalue()


@lru_cache(maxsize=1)
def pictures() -> dict[str, tuple[Picture, ...]]:
    """The images of both splits; those of ``val`` are numbered across the classes, as the official ones are."""
    train = [
        Picture(wnid, f"{wnid}_{10 + 7 * number}", jpeg(100 * at + number))
        for at, wnid in enumerate(CLASSES)
        for number in range(PER_CLASS["train"])
    ]
    val = [
        Picture(CLASSES[number % len(CLASSES)], f"ILSVRC2012_val_{number + 1:08d}", jpeg(1000 + number))
        for number in range(PER_CLASS["val"] * len(CLASSES))
    ]
    return {"train": tuple(train), "val": tuple(val)}


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tar(path: Path, members: Iterable[tuple[str, bytes]], mtime: float = 0, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), mtime
            archive.addfile(member, io.BytesIO(content))
    return path


def class_folders(root: Path, split: str, name: str | None = None) -> None:
    for picture in pictures()[split]:
        write(root / (name or split) / picture.wnid / f"{picture.stem}.JPEG", picture.content)


def flat(root: Path, split: str = "val", name: str | None = None, appended: bool = False) -> None:
    for picture in pictures()[split]:
        tail = f"_{picture.wnid}" if appended else ""
        write(root / (name or split) / f"{picture.stem}{tail}.JPEG", picture.content)


def id_of(wnid: str) -> int:
    """The devkit's number of a class; here the order is the reverse of the sorted one."""
    return 1000 - wnids().index(wnid)


def ground_truth(folder: Path) -> None:
    lines = [f"{id_of(picture.wnid)}\n" for picture in pictures()["val"]]
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "".join(lines))


def meta(folder: Path) -> None:
    """``meta.mat`` as the devkit has it: leaves first, then synsets above them, with numbers past 1,000."""
    from scipy.io import savemat

    rows = [(1000 - at, wnid, f"word {at}", 0) for at, wnid in enumerate(wnids())]
    rows = [*sorted(rows), (1001, "n00001740", "entity", 2)]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "meta.mat", {"synsets": synsets[:, None]})


def mapping(folder: Path) -> None:
    write(folder / "map_clsloc.txt", "".join(f"{wnid} {id_of(wnid)} word_{wnid}\n" for wnid in wnids()))


def shards(folder: Path, split: str, name: str, mtime: float = 0, size: int = 4, start: int = 0) -> None:
    """WebDataset shards, their images in another order than that of the classes."""
    items = sorted(pictures()[split], key=lambda picture: picture.stem[::-1])
    for number, at in enumerate(range(0, len(items), size), start):
        tar(folder / name.format(number), (member for item in items[at : at + size] for member in pair(item)), mtime)


def pair(picture: Picture) -> list[tuple[str, bytes]]:
    """The members of one sample of a shard."""
    label = str(wnids().index(picture.wnid)).encode()
    return [(f"{picture.stem}.cls", label), (f"{picture.stem}.jpg", picture.content), (f"{picture.stem}.json", b"{}")]


def table(split: str, appended: bool = True) -> dict[str, list[object]]:
    items = sorted(pictures()[split], key=lambda picture: picture.stem[::-1])
    return {
        "image": [
            {"bytes": item.content, "path": f"{item.stem}{f'_{item.wnid}' if appended else ''}.JPEG"} for item in items
        ],
        "label": [wnids().index(item.wnid) for item in items],
    }


def parquet(folder: Path, split: str, name: str, files: int = 2) -> None:
    import pyarrow
    from pyarrow import parquet as pq

    whole = pyarrow.table(table(split))
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(whole) // files)
    for number in range(files):
        part = whole.slice(number * size, size)
        pq.write_table(part, folder / f"{name}-{number:05d}-of-{files:05d}.parquet", row_group_size=2)


def arrow(folder: Path, split: str, files: int = 2) -> None:
    """One split of ``datasets.save_to_disk``."""
    import pyarrow

    whole = pyarrow.table(table(split))
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(whole) // files)
    for number in range(files):
        path = str(folder / f"data-{number:05d}-of-{files:05d}.arrow")
        with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, whole.schema) as stream:
            stream.write_table(whole.slice(number * size, size), max_chunksize=2)
    write(folder / "state.json", "{}")
    write(folder / "dataset_info.json", "{}")


# Whole copies: each writes into a data folder


def as_folders(data: Path) -> None:
    class_folders(data / "imagenet", "train")
    class_folders(data / "imagenet", "val")


def in_the_data_folder_itself(data: Path) -> None:
    class_folders(data, "train")
    class_folders(data, "val", "validation")


def of_kaggle(data: Path) -> None:
    root = data / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(root, "train")
    flat(root)
    rows = "".join(f"{item.stem},{item.wnid} 1 2 3 4 {item.wnid} 5 6 7 8\n" for item in reversed(pictures()["val"]))
    write(data / "LOC_val_solution.csv", f"ImageId,PredictionString\n{rows}")
    write(data / "LOC_synset_mapping.txt", "".join(f"{wnid} word, word\n" for wnid in wnids()))


def with_devkit(data: Path) -> None:
    root = data / "ILSVRC2012"
    class_folders(root, "train")
    flat(root)
    ground_truth(root / "ILSVRC2012_devkit_t12" / "data")
    meta(root / "ILSVRC2012_devkit_t12" / "data")


def with_mapping_file(data: Path) -> None:
    root = data / "imagenet1k"
    class_folders(root, "train", "ILSVRC2012_img_train")
    flat(root, name="ILSVRC2012_img_val")
    ground_truth(root)
    mapping(root)


def with_lines_of_wnids(data: Path) -> None:
    class_folders(data / "imagenet", "train")
    flat(data / "imagenet")
    lines = "".join(f"{item.wnid}\n" for item in pictures()["val"])
    write(data / "imagenet" / "imagenet_2012_validation_synset_labels.txt", lines)


def with_class_in_names(data: Path) -> None:
    class_folders(data / "imagenet", "train")
    flat(data / "imagenet", appended=True)


def official_archives(data: Path) -> None:
    """An archive of one archive for each class, and the validation images in one."""
    root = data / "imagenet"
    inner = []
    for wnid in sorted(CLASSES):
        files = [(f"{item.stem}.JPEG", item.content) for item in pictures()["train"] if item.wnid == wnid]
        inner.append((f"{wnid}.tar", tar(root / "inner.tar", files, form=tarfile.GNU_FORMAT).read_bytes()))
    (root / "inner.tar").unlink()
    tar(root / "ILSVRC2012_img_train.tar", inner, form=tarfile.GNU_FORMAT)
    write(root / "ILSVRC2012_img_train_t3.tar", b"of another task")
    tar(root / "ILSVRC2012_img_val.tar", [(f"{item.stem}.JPEG", item.content) for item in pictures()["val"]])
    ground_truth(root / "ILSVRC2012_devkit_t12" / "data")
    meta(root / "ILSVRC2012_devkit_t12" / "data")


def archive_for_each_class(data: Path) -> None:
    for split, items in pictures().items():
        for wnid in CLASSES:
            files = [(f"{item.stem}.JPEG", item.content) for item in items if item.wnid == wnid]
            tar(data / "imagenet" / split / f"{wnid}.tar", files)


def archives_of_folders(data: Path) -> None:
    for split, items in pictures().items():
        files = [(f"./{split}/{item.wnid}/{item.stem}.JPEG", item.content) for item in items]
        tar(data / "imagenet" / f"{split}.tar", files, form=tarfile.USTAR_FORMAT)


def webdataset(data: Path) -> None:
    shards(data / "imagenet", "train", "imagenet-train-{:06d}.tar")
    shards(data / "imagenet", "val", "imagenet-val-{:06d}.tar")


def webdataset_with_extended_headers(data: Path) -> None:
    """As the library writes them: a time with a fraction needs an extended header in front of every member."""
    shards(data / "imagenet" / "train", "train", "{:05d}.tar", mtime=1234567.25, start=1)
    shards(data / "imagenet" / "val", "val", "{:05d}.tar", mtime=1234567.25, start=1)


def hub_of_shards(data: Path) -> None:
    copy = data / "hub" / "datasets--timm--imagenet-1k-wds"
    blobs, snapshot = copy / "blobs", copy / "snapshots" / "0123abcd"
    shards(blobs, "train", "imagenet1k-train-{:04d}.tar")
    shards(blobs, "val", "imagenet1k-validation-{:02d}.tar")
    snapshot.mkdir(parents=True)
    for path in sorted(blobs.iterdir()):
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    (copy / "snapshots" / "old").mkdir()
    write(copy / "refs" / "main", "0123abcd")


def hub_of_parquet(data: Path) -> None:
    snapshot = data / "datasets--ILSVRC--imagenet-1k" / "snapshots" / "0123abcd" / "data"
    parquet(snapshot, "train", "train", files=3)
    parquet(snapshot, "val", "validation", files=1)
    parquet(snapshot, "val", "test", files=1)


def plain_parquet(data: Path) -> None:
    parquet(data / "imagenet-1k" / "train", "train", "part")
    parquet(data / "imagenet-1k" / "validation", "val", "part")


def saved_to_disk(data: Path) -> None:
    arrow(data / "imagenet" / "train", "train")
    arrow(data / "imagenet" / "validation", "val", files=1)
    write(data / "imagenet" / "dataset_dict.json", "{}")


COPIES: tuple[Callable[[Path], None], ...] = (
    as_folders,
    in_the_data_folder_itself,
    of_kaggle,
    with_devkit,
    with_mapping_file,
    with_lines_of_wnids,
    with_class_in_names,
    official_archives,
    archive_for_each_class,
    archives_of_folders,
    webdataset,
    webdataset_with_extended_headers,
    hub_of_shards,
    hub_of_parquet,
    plain_parquet,
    saved_to_disk,
)
NEED_PYARROW = (hub_of_parquet, plain_parquet, saved_to_disk)
