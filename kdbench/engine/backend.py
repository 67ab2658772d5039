"""Importing mmengine, with one line instead of a traceback where the machine lacks what its OpenCV needs."""

from __future__ import annotations

from kdbench.errors import KdbenchError

try:
    import mmengine  # noqa: F401
except ImportError as error:  # pragma: no cover - depends on the machine
    if "libGL" in str(error) or "libgthread" in str(error) or "libglib" in str(error):
        raise KdbenchError(
            f"mmengine's OpenCV cannot be loaded ({error}); install the library (Debian, Ubuntu: apt-get install libgl1 "
            "libglib2.0-0) or pip install --force-reinstall opencv-python-headless"
        ) from None
    raise
