"""The forecasts are compared with what the engine does."""

from tests.engine.conftest import lab

__all__ = ["lab"]
