"""Logs of cells: one logger, whose handler appends each record to the ``log.txt`` of the cell that it is about."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path


class _LogFiles(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        path: Path = record.log  # type: ignore[attr-defined]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        with contextlib.suppress(OSError):  # a full disk costs lines of a log, not the training
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join(f"{stamp} {line}\n" for line in record.getMessage().splitlines()))


_LOGGER = logging.getLogger("kdbench.cells")
_LOGGER.setLevel(logging.INFO)
_LOGGER.addHandler(_LogFiles())


def logger_of(log: Path) -> logging.LoggerAdapter[logging.Logger]:
    """A logger that writes to the file ``log``."""
    return logging.LoggerAdapter(_LOGGER, {"log": log})
