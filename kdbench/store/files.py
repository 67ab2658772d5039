"""Files that are whole or absent: written to another name, synced and renamed; JSON with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError

_CHECKSUM = b',\n "file_checksum": "'


class DamagedFileError(KdbenchError):
    """A file of the store that is cut, altered or unreadable."""


def write_bytes(path: Path, content: bytes, once: bool = False) -> None:
    """Write a file so that after a crash the old or the new one is there, never a part: temporary file, fsync, rename.

    Args:
        path: the file; its folder is created.
        content: all of it.
        once: refuse to replace a file that is there.

    Raises:
        FileExistsError: with ``once``, if there is a file.
        OSError: if it cannot be written; the old file is there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process numbers repeat on other machines that write into the same folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if once and _link(temporary, path):
            temporary.unlink()
        else:
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


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
        DamagedFileError: if the file is cut, altered or not one of these.
    """
    try:
        return json.loads(read_checked(path), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({type(error).__name__}: {error})") from None


def read_checked(path: Path) -> bytes:
    """The JSON in a file of ``write_json``, without its checksum.

    Raises:
        DamagedFileError: if the checksum is missing or does not match.
    """
    body, _, rest = path.read_bytes().rpartition(_CHECKSUM)
    if rest != hashlib.sha256(body).hexdigest().encode() + b'"\n}\n':
        raise DamagedFileError(f"{path} is damaged (its checksum does not match)")
    return body + b"\n}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
