"""The identity of what is trained: a configuration in canonical form, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Raised when what a configuration means changes, so that older results count as stale.
CONFIG_VERSION = 1


def given(limits: Mapping[str, int | None]) -> dict[str, int]:
    """Limits that are set; what is not set leaves the identity as it was before there was such a limit."""
    return {name: limit for name, limit in limits.items() if limit is not None}


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that change when anything in the configuration does."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:10]


def canonical(config: Mapping[str, Any]) -> str:
    """One text for configurations that mean the same, whatever the order of their keys."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), default=list)
