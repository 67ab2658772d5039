"""The identity of what is trained: a hash over everything that its numbers depend on.

A cell's configuration holds no seed: its folder is ``seedN-HASH``, and cells that differ in their seed share the hash. Nor does it
hold what changes time alone, names for display, or which metrics were asked for. Every field is written, defaults too. A field
that is added later has to be left out where it has its default: otherwise every stored result becomes stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Raised when what a configuration means changes, so that older results count as stale.
CONFIG_VERSION = 1


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that change when anything in the configuration does, and not with the order of its keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
