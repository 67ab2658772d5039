"""Running a net stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.nets.tapped import TappedNet


def can_run_stagewise(net: TappedNet) -> bool:
    """Whether ``StagewiseNet`` knows the net's architecture."""
    return False


class StagewiseNet:
    """A net as a sequence of stages."""

    def __init__(self, net: TappedNet) -> None:
        self.net = net
