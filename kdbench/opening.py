"""Opens the files of a run directory, a folder of data or of weights, which may come from somebody else.

What lies there under a name that we know need not be what we wrote: a link would let us read, publish, overwrite or remove a file
of the user's, a named pipe would let us wait for ever, a device or a sparse file would fill the memory. So a file is opened only
if it is a regular one, its last part is never followed as a link, and no folder between it and the root is one; the root itself
may be a link, since the user named it. New files get random names and are made, never opened, so that nothing can be waiting there.
Folders of data are often made of links (Hugging Face's cache, choices of images of a larger set): there a link is
followed, but only to what lies below the folder that the user named (``followed``).
This holds for what was received. Who may write into a folder while it is used could exchange a folder between two looks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO

from kdbench.errors import KdbenchError
from kdbench.shown import TEXT_LENGTH, printable

#: Bytes of a file of JSON, CSV or text that are read: beyond what any run writes.
TEXT_BYTES = 16 << 20

# Without O_NONBLOCK, opening a named pipe would wait for its other end.
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RefusedFileError(KdbenchError, OSError):
    """Something that is not the file it should be: a link, a folder, a pipe, or too large."""

    def __init__(self, path: Path | str, reason: str) -> None:
        OSError.__init__(self, errno.EINVAL, reason, str(path))
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{printable(self.path, TEXT_LENGTH)} {self.reason}"


def inside(root: Path, relative: str | PurePath) -> Path:
    """``root / relative``, or an error where a part below ``root`` is a link or leaves it. It need not exist.

    Raises:
        RefusedFileError: naming the part.
    """
    name = os.fspath(relative)
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise RefusedFileError(root / name.replace("\0", ""), f"is not below {root}")
    at = os.fspath(root)
    try:
        for part in parts:
            at = f"{at}/{part}"
            if stat.S_ISLNK(os.lstat(at).st_mode):
                raise RefusedFileError(at, "is a link, which is not followed")
    except RefusedFileError:
        raise
    except (OSError, ValueError) as error:  # what is not there is no link; ValueError: a lone surrogate
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise RefusedFileError(at, f"cannot be read ({_said(error)})") from None
    return root / name


def followed(root: Path, path: Path) -> Path:
    """``path`` with its links followed, where that leads below ``root``, which may be a link itself. For folders of data alone.

    Raises:
        RefusedFileError: where it leads out of ``root``.
    """
    try:
        top, target = os.path.realpath(root), os.path.realpath(path)
    except (OSError, ValueError) as error:  # ValueError: NUL, a lone surrogate
        raise RefusedFileError(path, f"cannot be read ({_said(error)})") from None
    if os.path.commonpath([top, target]) != top:
        raise RefusedFileError(
            path,
            f"leads out of {root} by a link, to {target}: it is not followed; --data may name a folder that holds both",
        )
    return Path(target)


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is none.
        RefusedFileError: if something else is there, or it cannot be read.
    """
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def open_log(path: Path) -> IO[str]:
    """Open a text file for adding lines at its end; it and its folder are made. Its lines are written at once.

    Raises:
        RefusedFileError: if something else is there.
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return os.fdopen(descriptor, "a", buffering=1, encoding="utf-8", errors="replace")


def size_of_own(path: Path) -> int:
    """Bytes of a file of ours that was begun; 0 where there is none, or something that could be somebody else's."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_nlink == 1 else 0


def open_own(path: Path) -> IO[bytes]:
    """Open a file for adding bytes at its end; see ``size_of_own``. It is made if there is none.

    Raises:
        RefusedFileError: if it is a link, under several names, or another user's.
    """
    descriptor = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    found = os.fstat(descriptor)
    if found.st_uid != os.getuid() or found.st_nlink != 1:
        os.close(descriptor)
        raise RefusedFileError(path, "is not a file of this user's alone")
    return os.fdopen(descriptor, "ab")


def read_file(path: Path, limit: int | None = TEXT_BYTES) -> bytes:
    """All of a regular file.

    Args:
        limit: bytes that it may have; None for weights, which are as large as their net.

    Raises:
        FileNotFoundError, RefusedFileError: as ``open_file``, and for a larger file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise RefusedFileError(path, f"has {size:,} bytes, more than {limit:,}")
        return file.read(size)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A new file beside ``path``, under a random name that begins with a dot and ends in ``.tmp``, and that name.

    It is removed at the end, if it is still there then.
    """
    # Process numbers repeat on other machines that write into the same folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o666), "wb") as file:
            yield file, temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        link, other = "is a link, which is not followed", "is no regular file"
        reasons = {errno.ELOOP: link, errno.EISDIR: other, errno.ENXIO: other}
        raise RefusedFileError(path, reasons.get(number or 0, f"cannot be opened ({_said(error)})")) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFileError(path, "is no regular file")
    return descriptor


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
