"""Cases of which a few run by default and the rest by name (``-m slow``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """The cases, all but the first ``count`` marked slow."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*value, marks=[pytest.mark.slow] if place >= count else []) for place, value in enumerate(values)
    ]
