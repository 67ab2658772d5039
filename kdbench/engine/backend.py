"""Whether mmengine can be imported: one line instead of a traceback where the machine lacks what its OpenCV needs."""

from __future__ import annotations

from kdbench.errors import KdbenchError


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


check_opencv()  # on import: modules that import mmengine import this one first
