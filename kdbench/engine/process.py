"""What a training process needs before it starts: an OpenCV that loads, and a C library that keeps freed memory."""

from __future__ import annotations

import ctypes
import sys

from kdbench.errors import KdbenchError

#: Parameters of glibc's ``mallopt``.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Larger pieces still come from the system and go back to it. A convolution's scratch memory is 128 MB at batch 128.
LARGEST = 2**30


def check_opencv() -> None:
    """Import OpenCV, which mmengine imports.

    Raises:
        KdbenchError: if a system library is missing, with the command that installs it.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise KdbenchError(
            f"OpenCV, which mmengine needs, cannot be loaded ({error}); on Debian and Ubuntu: apt-get install libgl1 "
            "libglib2.0-0"
        ) from None


def keep_freed_memory() -> bool:
    """Tell the C library to hold on to what is freed, in pieces of up to ``LARGEST`` bytes.

    By default it gives pieces of more than 32 MB back at once, and the system clears each page anew when the next step asks
    for it. What a process holds then stays at its peak until it ends, which is when its job ends.

    Returns:
        whether the C library took the setting: glibc does, others do not have it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_MMAP_THRESHOLD, LARGEST)) and bool(set_option(_TRIM_THRESHOLD, 2**31 - 1))


check_opencv()  # on import: modules that import mmengine import this one first
