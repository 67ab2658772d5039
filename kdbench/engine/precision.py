"""Numbers of a recipe: 32-bit floats, or autocast to bfloat16 or float16, the latter with scaled losses."""

from __future__ import annotations

from typing import Any

import torch


class Precision:
    """Autocast and loss scaling of one cell.

    Args:
        name: ``float32``, ``bfloat16`` or ``float16``.
        device: where it is trained.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype: torch.dtype = getattr(torch, name)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if name == "float16" else None

    def autocast(self) -> torch.autocast:
        """A context for forward passes; it does nothing for 32-bit floats."""
        reduced = self.dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if reduced else None, enabled=reduced)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
