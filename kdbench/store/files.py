"""Files that are whole or absent: written to another name, synced and renamed; JSON with a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, new_file, read_file

#: Levels of mappings and lists in a file of JSON; what we write has less than ten.
MAX_DEPTH = 50
_CHECKSUM = b',\n "file_checksum": "'


class DamagedFileError(KdbenchError):
    """A file of the store that is cut, altered or unreadable: which, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason})")
        self.path, self.reason = path, reason


def write_bytes(path: Path, content: bytes, once: bool = False) -> None:
    """Write a file so that after a crash the old or the new one is there, never a part: temporary file, fsync, rename.

    Args:
        path: the file; its folder is created.
        content: all of it.
        once: refuse to replace a file that is there.

    Raises:
        FileExistsError: with ``once``, if there is a file.
        RefusedFileError: if there is a folder of that name.
        OSError: if it cannot be written; the old file is there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as (file, temporary):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if not (once and _link(temporary, path)):
            try:
                os.replace(temporary, path)
            except (IsADirectoryError, NotADirectoryError):
                raise RefusedFileError(path, "is no regular file") from None


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user named, whole or not at all. In a received folder a link of that name may lie in wait.

    Raises:
        KdbenchError: if it cannot be written, or a link, a folder, a pipe or a device has the name.
    """
    try:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            what = "a link, which is not followed" if path.is_symlink() else "no regular file"
            raise KdbenchError(f"{path} cannot be written: it is {what}")
        write_bytes(path, content)
    except (OSError, ValueError) as error:  # ValueError: NUL in a name
        raise KdbenchError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error})") from None


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name that must be new; False where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        if os.stat(source).st_nlink != 2:  # NFS may repeat a request that was carried out
            raise
    except OSError:
        if target.exists():
            raise FileExistsError(f"{target} exists") from None
        return False
    return True


def write_json(path: Path, content: Mapping[str, Any], once: bool = False) -> None:
    """Write a mapping (not empty; finite numbers) as JSON that ends with a checksum; see ``write_bytes``."""
    write_bytes(path, encode_json(content), once)


def encode_json(content: Mapping[str, Any]) -> bytes:
    """What ``write_json`` writes."""
    body = json.dumps(content, indent=1, allow_nan=False).removesuffix("\n}").encode()
    return body + _CHECKSUM + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if the file is cut, altered or not one of these.
    """
    raw = read_checked(path)
    try:
        content = json.loads(raw, parse_constant=_refuse, parse_float=_finite)
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
            _check_depth(content)
        return content
    except RecursionError:
        raise DamagedFileError(path, "it is nested too deeply") from None
    except ValueError as error:
        raise DamagedFileError(path, f"{type(error).__name__}: {error}") from None


def _check_depth(content: Any) -> None:
    """Raise RecursionError where what uses the content would: it goes down more steps of Python for a level than the parser."""
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise RecursionError


def read_checked(path: Path) -> bytes:
    """The JSON in a file of ``write_json``, without its checksum.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if it is no regular file, or its checksum is missing or does not match.
    """
    try:
        body, _, rest = read_file(path).rpartition(_CHECKSUM)
    except RefusedFileError as error:
        raise DamagedFileError(path, f"it {error.reason}") from None
    if rest != hashlib.sha256(body).hexdigest().encode() + b'"\n}\n':
        raise DamagedFileError(path, "its checksum does not match")
    return body + b"\n}"


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
