"""Memory that a process frees stays with it: on a CPU a third of a step can go into getting it back from the system."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's ``mallopt``.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Larger pieces still come from the system and go back to it. A convolution's scratch memory is 128 MB at batch 128.
LARGEST = 2**30


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
