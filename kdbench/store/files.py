"""Files that are whole or absent: written to another name, synced and renamed; JSON with a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, new_file, read_file

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
    try:
        return json.loads(read_checked(path), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise DamagedFileError(path, "it is nested too deeply") from None
    except ValueError as error:
        raise DamagedFileError(path, f"{type(error).__name__}: {error}") from None


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
