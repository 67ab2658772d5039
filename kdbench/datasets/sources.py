"""Sources of encoded images: files of a folder, members of tar archives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

#: Extensions of image files, in small letters (timm's ``get_img_extensions``; named here so that a listing needs no torch).
IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg"})


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its extension."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def decode(file: IO[bytes], name: str) -> Image:
    """Decode an image to RGB. Its EXIF orientation is not applied (as in timm and torchvision).

    Raises:
        OSError: if it does not decode, with ``name`` and the reason.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        image = pillow.open(file)
        image.load()
        if image.mode == "RGB":
            return image
        image.info.pop("transparency", None)  # RGB has none, and Pillow would warn of what is lost
        return image.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise OSError(f"{name} does not decode: it is no image that Pillow knows") from None
    except Exception as error:  # Pillow's plugins raise many kinds on broken files, some of them no OSError
        raise OSError(f"{name} does not decode: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """The text of an exception in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class PackedNames:
    """Names end to end in ``blob``, with the ``ends`` (N,) int64 of each: a million Python strings would take 100 MB."""

    blob: bytes
    ends: np.ndarray

    @classmethod
    def pack(cls, names: Iterable[str]) -> PackedNames:
        encoded = [os.fsencode(name) for name in names]
        return cls(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: int) -> str:
        start = int(self.ends[position - 1]) if position else 0
        return os.fsdecode(self.blob[start : int(self.ends[position])])

    def hash_into(self, digest: hashlib._Hash) -> None:
        digest.update(self.blob)
        digest.update(self.ends.astype("<i8").tobytes())


@dataclass(frozen=True)
class FolderSource:
    """Images that are files below ``root``."""

    root: str
    names: PackedNames

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        return os.path.join(self.root, self.names[position])

    def read(self, position: int) -> Image:
        path = self.name(position)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise OSError(f"{path} is empty")
            return decode(file, path)

    def fingerprint(self) -> str:
        """SHA-256 over the names below ``root``. Sizes are left out: asking for a million takes minutes on a file server."""
        digest = hashlib.sha256(b"folder")
        self.names.hash_into(digest)
        return digest.hexdigest()


@dataclass(frozen=True)
class TarSource:
    """Images that are members of tar archives below ``root``, which are not unpacked.

    Attributes:
        archives: paths below ``root``.
        archive: (N,) int32, the archive of each image.
        offsets, sizes: (N,) int64, of its bytes in the archive.
    """

    root: str
    archives: tuple[str, ...]
    archive: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: PackedNames

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        return f"{self._path(position)}: {self.names[position]}"

    def read(self, position: int) -> Image:
        size = int(self.sizes[position])
        if size == 0:
            raise OSError(f"{self.name(position)} is empty")
        # Opened for each image, as a file of a folder is: no process has to share or close what another opened.
        with open(self._path(position), "rb") as file:
            file.seek(int(self.offsets[position]))
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self.name(position)} has {len(content):,} of {size:,} bytes: the archive is cut short")
        return decode(BytesIO(content), self.name(position))

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the members."""
        digest = hashlib.sha256(b"tar")
        self.names.hash_into(digest)
        digest.update(self.sizes.astype("<i8").tobytes())
        return digest.hexdigest()

    def _path(self, position: int) -> str:
        return str(Path(self.root, self.archives[int(self.archive[position])]))
