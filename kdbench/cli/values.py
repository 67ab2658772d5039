"""Values on the command line: read, or refused in words that say what is expected."""

from __future__ import annotations

import argparse


def gigabytes(text: str) -> float:
    """An amount above 0."""
    return _above_zero(text, "gigabytes")


def gibibytes(text: str) -> float:
    """An amount above 0."""
    return _above_zero(text, "gibibytes")


def count(text: str) -> int:
    """A number of processes, 1 or more."""
    return _whole(text, 10**5, "processes")


def images(text: str) -> int:
    """A number of images, 1 or more."""
    return _whole(text, 10**9, "images")


def classes(text: str) -> int:
    """A number of classes, 1 or more."""
    return _whole(text, 10**5, "classes")


def hours(text: str) -> float:
    """0 or more."""
    return _at_least(text, 0.0, "hours")


def minutes(text: str) -> float:
    """0 or more."""
    return _at_least(text, 0.0, "minutes")


def seconds(text: str) -> float:
    """A tenth or more."""
    return _at_least(text, 0.1, "seconds")


def points(text: str) -> float:
    """Points of accuracy, 0 to 100."""
    value = _read(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points from 0 to 100")
    return value


def folder(text: str) -> str:
    """A path; neither empty nor with a null character, which no file system takes."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder")
    return text


def _whole(text: str, below: int, what: str) -> int:
    if not (text.isdecimal() and len(text) < 12 and 1 <= int(text) < below):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what} (1 or more)")
    return int(text)


def _at_least(text: str, least: float, what: str) -> float:
    value = _read(text)
    if not least <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what} ({least:g} or more)")
    return value


def _above_zero(text: str, what: str) -> float:
    value = _read(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what} above 0")
    return value


def _read(text: str) -> float:
    """NaN, which no comparison holds for, where the text is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
