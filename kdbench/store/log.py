"""Logs of cells: one logger, whose handler appends each record to the ``log.txt`` of the cell that it is about."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from kdbench.opening import open_log
from kdbench.shown import without_homes


class _LogFiles(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        path: Path = record.log  # type: ignore[attr-defined]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        with contextlib.suppress(OSError):  # a full disk costs lines of a log, not the training
            lines = without_homes(record.getMessage()).splitlines()
            with open_log(path) as file:
                file.write("".join(f"{stamp} {line}\n" for line in lines))


_LOGGER = logging.getLogger("kdbench.cells")
_LOGGER.setLevel(logging.INFO)
_LOGGER.addHandler(_LogFiles())


def logger_of(log: Path) -> logging.LoggerAdapter[logging.Logger]:
    """A logger that writes to the file ``log``."""
    return logging.LoggerAdapter(_LOGGER, {"log": log})
