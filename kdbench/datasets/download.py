"""Downloading a file, and taking single files out of an archive. Works without torch."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import secrets
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, masked
from kdbench.opening import open_own, size_of_own

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class FileFacts:
    """The expected size of a file in bytes, and its MD5 in hexadecimal digits."""

    size: int
    md5: str

    def __str__(self) -> str:
        return f"{self.size:,} bytes, md5 {self.md5}"


def facts_of(path: Path) -> FileFacts:
    """Size and MD5 of a file."""
    return FileFacts(path.stat().st_size, file_digest(path, "md5"))


def file_digest(path: Path, kind: str) -> str:
    """The digest of a file in hexadecimal digits, of a ``kind`` that hashlib knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def fetch_file(
    url: str, path: Path, sha256: str | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Download ``url`` to ``path``, whole or not at all; its folder is made.

    Args:
        sha256: expected, in hexadecimal digits. Where it is known, a broken download is kept as ``.NAME.part`` and resumed.
        progress: called with the bytes that came so far, and all (0 where the server does not say).

    Raises:
        KdbenchError: if it cannot be had, or is another file.
    """
    shown = masked(url)
    partial = path.with_name(f".{path.name}.part" if sha256 else f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = size_of_own(partial)
        request = _request(url, {"Range": f"bytes={begun}-"} if begun else {})
        with urllib.request.build_opener(_WebOnly).open(request, timeout=TIMEOUT_SECONDS) as source:
            if source.status != 206:
                begun = 0
            size = begun + int(source.headers.get("Content-Length") or 0)
            if not begun:
                partial.unlink(missing_ok=True)
            with open_own(partial) as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    if progress is not None:
                        progress(target.tell(), size)
                target.flush()
                os.fsync(target.fileno())
        came = partial.stat().st_size
        if came < size:
            again = "; another try goes on from there" if sha256 else ""
            raise KdbenchError(f"{shown} did not come whole ({came:,} of {size:,} bytes){again}")
        if sha256 and (found := file_digest(partial, "sha256")) != sha256:
            partial.unlink()
            raise KdbenchError(f"{shown} is not what it was ({came:,} bytes, sha256 {found}); expected sha256 {sha256}")
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing comes after what is there, which was not whole or not right
            partial.unlink(missing_ok=True)
        raise KdbenchError(
            f"{shown} cannot be downloaded (the server says {error.code} {masked(str(error.reason))})"
        ) from None
    except urllib.error.URLError as error:
        raise KdbenchError(f"{shown} cannot be downloaded ({masked(str(error.reason))}); is there a network?") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise KdbenchError(f"{shown} cannot be downloaded to {path} ({masked(reason)})") from None
    finally:
        if not sha256:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib would go to ftp too."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.URLError(f"redirected to {newurl}, which is no address of http or https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    """A request, with the name and password before the host as a header that does not follow to another host."""
    scheme, slashes, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    who, at, host = place.rpartition("@")
    request = urllib.request.Request(f"{scheme}{slashes}{host}{slash}{path}", headers=headers)  # noqa: S310 - suites allow http(s) alone
    if at:
        word = base64.b64encode(urllib.parse.unquote(who).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    return request


def unpack(archive: Path, members: Mapping[str, tuple[Path, FileFacts]]) -> None:
    """Take single files out of a tar archive.

    Only the named members are read, as bytes, no more than each should have, and written to paths that the caller chose: no
    path, link, owner or mode in the archive is followed.

    Args:
        members: name in the archive -> where it goes, and its expected size and MD5.

    Raises:
        KdbenchError: if the archive cannot be read, or a member is missing or another one than expected.
    """
    try:
        with tarfile.open(archive) as tar:
            for name, (path, expected) in members.items():
                info = tar.getmember(name)
                source = tar.extractfile(info) if info.isreg() else None
                if source is None:
                    raise KdbenchError(f"{archive}: {name} is no plain file")
                # One byte more than there should be is enough to know that it is another file.
                path.write_bytes(source.read(expected.size + 1))
                if (found := facts_of(path)) != expected:
                    path.unlink()
                    raise KdbenchError(f"{archive}: {name} has {found}; expected {expected}")
    except KeyError:
        raise KdbenchError(f"{archive} does not hold {name}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise KdbenchError(f"{archive} cannot be unpacked ({error})") from None
