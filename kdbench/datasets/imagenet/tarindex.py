"""The index of a tar archive, from its headers alone; images are not read."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from kdbench.datasets.imagenet.wnids import TITLE
from kdbench.datasets.sources import reason_of
from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, followed, open_file

_BLOCK = tarfile.BLOCKSIZE
_FILES, _FOLDER, _EXTENDED = (tarfile.REGTYPE, tarfile.AREGTYPE), tarfile.DIRTYPE, tarfile.XHDTYPE
#: Records of an extended header that change the next header; others (times, owners) do not matter here.
_TELLING = re.compile(rb" (?:path=|size=|linkpath=|GNU\.sparse|hdrcharset=)")

_OCTAL = re.compile(rb"[0-7]{1,12}")
#: Bytes of an extended header that are read into memory.
_MOST_EXTENDED = 1 << 20


class Member(NamedTuple):
    """A file of an archive: its name, and the offset and number of its bytes in the archive."""

    name: str
    offset: int
    size: int


def members(path: Path, data: Path) -> list[Member]:
    """The files of an archive; those of archives inside it (the official ``ILSVRC2012_img_train.tar``) as ``INNER.tar/NAME``.

    Raises:
        KdbenchError: for an archive that is compressed, cut short or none, and for names that lead out of it.
    """
    try:
        with open_file(followed(data, path)) as file:
            if file.read(2) == b"\x1f\x8b":
                raise KdbenchError(
                    f"{TITLE}: {path} is compressed, so single images cannot be read from it; unpack it: gunzip {path}"
                )
            return list(_files(file, path, 0, os.fstat(file.fileno()).st_size, ""))
    except RefusedFileError:
        raise
    except OSError as error:
        raise KdbenchError(f"{TITLE}: {path} cannot be read ({error.strerror or error})") from None


def _files(file: IO[bytes], path: Path, start: int, stop: int, inside: str) -> Iterator[Member]:
    """Members between two offsets, those of inner archives in the place of these."""
    plain = _plain(file.fileno(), path, start, stop)
    for member in _by_tarfile(file, path, start, stop) if plain is None else plain:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise KdbenchError(
                f"{TITLE}: {path} holds a member named {member.name}; expected names that stay inside the archive"
            )
        if parts and parts[-1].startswith("."):
            continue
        name = f"{inside}{'/'.join(parts)}"
        if name.endswith(".tar") and not inside:
            yield from _files(file, path, member.offset, member.offset + member.size, f"{name}/")
        else:
            yield Member(name, member.offset, member.size)


def _plain(descriptor: int, path: Path, start: int, stop: int) -> list[Member] | None:
    """The members by a short parser of POSIX headers; None where one needs more than that.

    ``tarfile`` takes 20 us for a member, and 45 us for one with an extended header, as WebDataset writes them, against 8 and
    14 us here (one core, Python 3.11): two minutes for the 2.6 million members of ImageNet's shards instead of half a minute.
    """
    cut_short = KdbenchError(f"{TITLE}: {path} is cut short after {stop - start:,} bytes: was it copied whole?")
    found: list[Member] = []
    at = start
    while True:
        header = os.pread(descriptor, _BLOCK, at) if at + _BLOCK <= stop else b""
        if len(header) < _BLOCK:
            raise cut_short
        if not header[0] and not any(header):
            return found
        kind, size_field = header[156:157], header[124:136].strip(b" \0")
        if header[257:262] != b"ustar" or not _OCTAL.fullmatch(size_field) or not _checksum_holds(header):
            return None
        size = int(size_field, 8)
        data = at + _BLOCK
        at = data + -(-size // _BLOCK) * _BLOCK
        if kind == _EXTENDED:
            if size > _MOST_EXTENDED:
                raise KdbenchError(
                    f"{TITLE}: {path} has an extended header of {size:,} bytes, more than {_MOST_EXTENDED:,}"
                )
            if _TELLING.search(os.pread(descriptor, size, data)):
                return None
        elif kind in _FILES:
            if data + size > stop:
                raise cut_short
            name = header[:100].split(b"\0", 1)[0]
            prefix = header[345:500].split(b"\0", 1)[0] if header[262:263] == b"\0" else b""
            whole = os.fsdecode(prefix + b"/" + name if prefix else name)
            if whole.endswith("/"):  # how the oldest archives write a folder
                continue
            found.append(Member(whole, data, size))
        elif kind != _FOLDER:
            return None


def _checksum_holds(header: bytes) -> bool:
    stated = header[148:156].strip(b" \0")
    return bool(_OCTAL.fullmatch(stated)) and int(stated, 8) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")


def _by_tarfile(file: IO[bytes], path: Path, start: int, stop: int) -> Iterator[Member]:
    """The members by the library, which knows all formats."""
    try:
        file.seek(start)
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  closes nothing that is not closed here
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # which would grow by all that was seen
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise KdbenchError(
                    f"{TITLE}: {path} holds {member.name}, which is a link or the like; expected only files and folders"
                )
            if member.offset_data + member.size > stop:
                raise tarfile.ReadError("unexpected end of data")
            yield Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise KdbenchError(
            f"{TITLE}: {path} is no whole tar archive ({reason_of(error)}): was it copied whole?"
        ) from None
