"""Sources of encoded images: files of a folder, members of tar archives."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from kdbench.opening import RefusedFileError, followed, open_file

if TYPE_CHECKING:
    from PIL.Image import Image

#: The formats that are read, by content. No other reader of Pillow sees a file: that of PostScript would start a program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
#: Endings of their files, in small letters. They decide which files of a folder are images: none is opened for a listing.
IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"}
)
EXPECTED_FILES = "images (.jpg, .png, .webp, .bmp, .tif, .ppm or .gif)"
#: More pixels are refused: in RGB they would take 0.4 GB of every loader process. Pillow's own bound of what is suspicious.
MAX_PIXELS = 89_478_485


def ending(name: str) -> str:
    """The ending of a file's name in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its ending."""
    return ending(name) in IMAGE_ENDINGS


def endings_of(names: Iterable[str]) -> str:
    """How many files have which ending, the most frequent first: ``20 .heic, 1 without ending``."""
    counts = Counter(ending(name) or "without ending" for name in names).most_common()
    return ", ".join(f"{count:,} {kind}" for kind, count in counts[:4]) + (", ..." if len(counts) > 4 else "")


def decode(file: IO[bytes], name: str) -> Image:
    """Decode an image to RGB; of several in a file the first. Its EXIF orientation is not applied (as in timm and torchvision).

    Raises:
        OSError: if it does not decode, with ``name`` and the reason.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # refused below
            image = pillow.open(file, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise OSError(f"it has {image.width:,} x {image.height:,} px, which are more than {MAX_PIXELS:,} pixels")
        image.load()
        return to_rgb(image)
    except MemoryError:
        raise
    except pillow.DecompressionBombError:  # Pillow's, at twice as many
        raise OSError(f"{name} does not decode: it has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise OSError(f"{name} does not decode: it is no {kinds}, or of a kind that Pillow does not read") from None
    except Exception as error:  # Pillow's plugins raise many kinds on broken files, some of them no OSError
        raise OSError(f"{name} does not decode: {reason_of(error)}") from None


def to_rgb(image: Image) -> Image:
    """A loaded image of any mode as 8-bit RGB.

    Alpha is dropped. Grey of 16 bits (``I;16`` and its byte orders; ``I`` of a PNG or PGM) is scaled, white to white; Pillow alone
    would cut it off at 255. All other modes are converted by Pillow.

    Raises:
        OSError: for ``F``, for ``I`` of other files and for integers with a sign, which have no white.
    """
    from PIL import Image as pillow

    # of a TIFF: 258 BitsPerSample, 262 PhotometricInterpretation (0: white is 0), 339 SampleFormat (2: integers with a sign)
    tags = getattr(image, "tag_v2", {})
    if 2 in np.atleast_1d(tags.get(339, 1)):
        raise OSError(f"mode {image.mode}, integers with a sign and without a stated white; convert it to 8 or 16 bits")
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        white = 2 ** int(tags.get(258, (16,))[0]) - 1
        levels = (np.asarray(image).astype(np.uint32) * 255 + white // 2) // white
        image = pillow.fromarray((255 - levels if tags.get(262) == 0 else levels).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = {"I": "integers", "F": "floats"}[image.mode]
        raise OSError(f"mode {image.mode}, 32-bit {kind} without a stated white; convert it to 8 or 16 bits")
    image.info.pop("transparency", None)  # RGB has none, and Pillow would warn of what is lost
    return image.convert("RGB")


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


def _open_below(data: str, path: str) -> IO[bytes]:
    """Open a regular file, or a link to one in the data folder. The folders above it were looked at when it was listed."""
    try:
        return open_file(Path(path))
    except RefusedFileError:  # finding the target of every path takes several times as long
        return open_file(followed(Path(data), Path(path)))


@dataclass(frozen=True)
class FolderSource:
    """Images that are files below ``root``; their links may lead anywhere in the data folder, ``data``."""

    root: str
    data: str
    names: PackedNames

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        return os.path.join(self.root, self.names[position])

    def read(self, position: int) -> Image:
        path = self.name(position)
        with _open_below(self.data, path) as file:
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
        data: the data folder, which links to archives may not leave.
        archives: paths below ``root``.
        archive: (N,) int32, the archive of each image.
        offsets, sizes: (N,) int64, of its bytes in the archive.
    """

    root: str
    data: str
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
        with _open_below(self.data, self._path(position)) as file:
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
