"""CIFAR-100 from its official files, whole in memory at its native 32 x 32 px.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009: 50,000 training and 10,000 test images, 500 and 100
of each of 100 classes, which form 20 superclasses of five. The test protocol of the literature trains on all 50,000. For
``--split validation`` 5,000 of them, 50 of each class, are held out (``Dataset.for_split``): students and teachers then train
on the other 45,000.

The official files are pickles, which can run any code when they are read. Here their size and MD5 are checked first, and what
they may build is a short list (``_PlainUnpickler``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from kdbench.data.images import Dataset, ImageSet
from kdbench.datasets.download import FileFacts, facts_of, fetch_file, unpack
from kdbench.datasets.sources import reason_of
from kdbench.errors import KdbenchError
from kdbench.opening import followed, open_file

if TYPE_CHECKING:
    from kdbench.suite.dataset import DatasetSpec

FOLDER = "cifar-100-python"
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
#: MD5 as in torchvision.datasets.CIFAR100, which has them from the data set's page.
ARCHIVE = FileFacts(169_001_437, "eb9058c3a382ffc7106e4002c42a8d85")
FILES = {
    "train": FileFacts(155_249_918, "16019d7e3df5f24257cddd939b257f8d"),
    "test": FileFacts(31_049_707, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    "meta": FileFacts(1_473, "7973b15100ade9c7d40fb424638fde48"),
}
NUM_CLASSES = 100
PIXELS = (3, 32, 32)
VALIDATION_PER_CLASS = 50


def load(folder: Path | None = None, spec: DatasetSpec | None = None) -> Dataset:
    """Load CIFAR-100.

    Args:
        folder: the folder ``cifar-100-python``, or the one that holds it.

    Raises:
        KdbenchError: if a file is missing, damaged, or another one.
    """
    files = _checked(folder)
    parts, coarse = {}, [0] * NUM_CLASSES
    for name in ("train", "test"):
        content = _read(files[name])
        # A row holds the red, the green and the blue plane. NumPy lends the pickle's bytes out read-only, which torch refuses.
        pixels = torch.from_numpy(np.require(content[b"data"], requirements=("C", "W")))
        parts[name] = ImageSet(pixels.view(-1, *PIXELS), torch.tensor(content[b"fine_labels"]))
        for label, superclass in zip(content[b"fine_labels"], content[b"coarse_labels"], strict=True):
            coarse[label] = superclass
    train, test = parts["train"], parts["test"]
    meta = _read(files["meta"])
    names, coarse_names = (
        tuple(name.decode() for name in meta[key]) for key in (b"fine_label_names", b"coarse_label_names")
    )
    held_out = held_out_positions(train.labels.numpy(), VALIDATION_PER_CLASS)
    validation = train.take(held_out)
    return Dataset("cifar100", NUM_CLASSES, train, validation, test, held_out, names, tuple(coarse), coarse_names)


def check(folder: Path | None = None, spec: DatasetSpec | None = None) -> None:
    """Check that the files are there and whole. Raises as ``load``."""
    _checked(folder)


def _checked(folder: Path | None) -> dict[str, Path]:
    """The paths of ``train``, ``test`` and ``meta``, whose size and MD5 are the official ones."""
    if folder is None:
        raise KdbenchError(
            f"CIFAR-100 lies in files: --data DIR or $KDBENCH_DATA (not set) names the folder that holds {FOLDER}/; "
            f"--download fetches it, or get it from {URL}"
        )
    folder = Path(folder)
    if not folder.exists():
        raise KdbenchError(f"CIFAR-100: {folder} does not exist; it should hold {FOLDER}/, unpacked from {URL}")
    if not folder.is_dir():
        _refuse_file(folder, folder)
    own = folder / FOLDER
    if own.exists() and not own.is_dir():
        _refuse_file(own, folder)
    here = own if own.is_dir() else folder
    if here == folder and folder.name != FOLDER and not any((folder / name).is_file() for name in FILES):
        archive = folder / f"{FOLDER}.tar.gz"
        if archive.exists():
            _refuse_file(archive, folder)
        raise KdbenchError(f"CIFAR-100: there is no {FOLDER}/ in {folder}; --download fetches it, or get it from {URL}")
    paths = {name: followed(folder, here / name) for name in FILES}
    for name, path in paths.items():
        if not path.is_file():
            raise KdbenchError(
                f"CIFAR-100: {path} {'is no file' if path.exists() else 'is missing'}; expected {FILES[name]}, from {URL}"
            )
        try:
            size = path.stat().st_size
            found = facts_of(path) if size <= FILES[name].size else f"{size:,} bytes"
        except OSError as error:
            raise KdbenchError(f"CIFAR-100: {path} cannot be read ({error.strerror})") from None
        if found != FILES[name]:
            why = "only part of it was copied" if size < FILES[name].size else "it is another file, or damaged"
            raise KdbenchError(f"CIFAR-100: {path} has {found}; expected {FILES[name]}: {why}; get it from {URL}")
    return paths


def download(folder: Path | None, progress: Callable[[int, int], None] | None = None) -> None:
    """Fetch CIFAR-100 into ``folder/cifar-100-python``; does nothing where the files are there already.

    Args:
        folder: the data folder, or ``cifar-100-python`` itself; made if it does not exist.
        progress: called with the bytes that came so far, and all.

    Raises:
        KdbenchError: without a network, without room, or if what comes is not the official archive.
    """
    if folder is None:
        raise KdbenchError("--download needs to know where to: --data DIR or $KDBENCH_DATA (not set)")
    with contextlib.suppress(KdbenchError):
        check(folder)
        return
    folder = Path(folder)
    target = followed(folder, folder if folder.name == FOLDER else folder / FOLDER)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as work:
            archive = Path(work) / f"{FOLDER}.tar.gz"
            fetch_file(URL, archive, progress=progress)
            if (found := facts_of(archive)) != ARCHIVE:
                raise KdbenchError(f"{URL} is another file, or did not come whole: {found}; expected {ARCHIVE}")
            unpack(archive, {f"{FOLDER}/{name}": (Path(work) / name, facts) for name, facts in FILES.items()})
            for name in FILES:
                os.replace(Path(work) / name, target / name)
    except OSError as error:
        raise KdbenchError(f"CIFAR-100 cannot be stored in {target} ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            target.rmdir()  # which only an empty folder lets happen


def held_out_positions(labels: np.ndarray, per_class: int) -> torch.Tensor:
    """Positions in the training set that are validation images, in order: ``per_class`` of every class.

    A position's rank is its SHA-256, so that the split does not depend on a library's random numbers.

    Args:
        labels: (N,) classes of the training images.
    """
    rank = np.array([hashlib.sha256(f"kdbench cifar100 {index}".encode()).hexdigest() for index in range(len(labels))])
    order = np.argsort(rank)
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)).astype(np.int64))


def _refuse_file(path: Path, folder: Path) -> NoReturn:
    """Refuse a file in the place of the folder, with what to do."""
    with open_file(followed(folder, path)) as file:
        start = file.read(512)
    if start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar":
        raise KdbenchError(f"CIFAR-100: {path} is the packed archive; unpack it: tar -xf {path} -C {path.parent}")
    raise KdbenchError(f"CIFAR-100: {path} is a file; expected a folder that holds {FOLDER}/, unpacked from {URL}")


class _PlainUnpickler(pickle.Unpickler):
    """Reads what the official files consist of: dictionaries, lists, bytes, numbers, and arrays of bytes. Nothing else.

    A pickle names the functions it wants called. The three that NumPy's arrays need are replaced by narrow ones here; any other
    name is refused before it is imported.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _byte_type
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-100 needs")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it asks for an array of an unknown kind")
    return np.ndarray.__new__(np.ndarray, (0,), dtype=np.uint8)


def _byte_type(code: Any, *flags: Any) -> np.dtype[Any]:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"it asks for an array of {code!r}, not of bytes")
    return np.dtype("u1", False, True)  # a copy: what the pickle sets on it stays with it


def _read(path: Path) -> dict[bytes, Any]:
    """The dictionary inside a file, whose MD5 vouches for its keys and values. Python 2 wrote it: its strings are bytes here."""
    try:
        with open_file(path) as file:
            return _PlainUnpickler(file, encoding="bytes").load()
    except Exception as error:  # whatever a wrong pickle makes the unpickler or NumPy raise
        raise KdbenchError(f"CIFAR-100: {path} is no file of this data set: {reason_of(error)}") from None
