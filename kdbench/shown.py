"""Text that comes from files, as it may be shown and published."""

from __future__ import annotations

import functools
import os
import re

#: Characters of a name, and of a sentence such as a reason, that are shown.
NAME_LENGTH, TEXT_LENGTH = 80, 1000

# Controls but tab and newline; bidirectional marks and overrides, invisible signs and tags.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_NO_TEXT = re.compile("[\ud800-\udfff]")
_LINES = re.compile("[\u2028\u2029]")
#: A folder of libraries up to where the library begins, and the homes of other people's machines.
_LIBRARIES = re.compile(r"(?:/[^\s/\"':()]+)+/(?=(?:site|dist)-packages/)")
_HOMES = re.compile(r"/(?:home|Users)/[^\s/\"':()]+|/root(?=[/\s\"':()]|$)")


def printable(text: object, limit: int | None = None) -> str:
    """Text of somebody else's as it may stand in a terminal, a table or a page: each output passes what it writes through here.

    Names, reasons and logs come from files that may be received. Control characters in them would steer a terminal (its title,
    its clipboard) and break LaTeX, bidirectional overrides make a text read as another one, lone surrogates (names of files that
    are not UTF-8) can be written nowhere. The first two are dropped, a surrogate becomes �, a separator of lines a blank.

    Args:
        limit: characters after which it is cut, with an ellipsis; None where it is not a single name.
    """
    shown = str(text)
    if not (shown.isascii() and shown.isprintable()):
        shown = _NO_TEXT.sub("\ufffd", _UNSEEN.sub("", _LINES.sub(" ", shown)))
    return shown if limit is None or len(shown) <= limit else f"{shown[: limit - 1]}…"


def without_homes(text: str) -> str:
    """Text without the paths of libraries and the names of users: tracebacks are published with a report."""
    short = _LIBRARIES.sub("", text)
    return _HOMES.sub("~", short.replace(f"{_home()}/", "~/") if _home() else short)


@functools.cache
def _home() -> str:
    home = os.path.expanduser("~").rstrip("/")
    return home if home.startswith("/") else ""
