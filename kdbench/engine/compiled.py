"""Forward passes of a training step, compiled where the run asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from kdbench.engine.faults import is_device_lost, is_out_of_memory
from kdbench.method import Outputs
from kdbench.nets.tapped import TappedNet

#: What compiled nets may differ from plain ones, in 32-bit floats: kernels that are fused round elsewhere.
TOLERANCE = 1e-4

#: Nets of one class share their code, and each that is compiled anew counts against torch's limit, which is 8.
_COMPILED_NETS = 256


class Forward:
    """A net's forward pass in a training step: what ``TappedNet.run`` gives, compiled where that was asked for.

    Evaluation stays as it is: its batches have other sizes, each of which would be compiled anew.

    Args:
        net: must be on its device already.
        compile: run it through ``torch.compile``.
        say: receives the reason where a net does not compile.
    """

    def __init__(self, net: TappedNet, compile: bool = False, say: Callable[[str], None] = print) -> None:
        self.net = net
        self.compile, self.say = compile, say
        self.fell_back: str | None = None
        self._compiled: Callable[[Tensor, Collection[str]], Outputs] | None = None
        if compile:
            try:
                self._compiled = compiled(net.run)
            except Exception as error:
                self._fall_back(error)

    def __call__(self, inputs: Tensor, needs: Collection[str]) -> Outputs:
        if self._compiled is None:
            return self.net.run(inputs, needs)
        try:
            return self._compiled(inputs, needs)
        except Exception as error:  # compilation happens at the first call, and fails in many ways
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            self._fall_back(error)
            return self.net.run(inputs, needs)

    def _fall_back(self, error: Exception) -> None:
        self._compiled = None
        lines = [line for line in str(error).splitlines() if line.strip()]
        self.fell_back = f"{type(error).__name__}: {lines[0].strip() if lines else ''}"
        self.say(f"net {self.net.name} does not compile and runs as it is ({self.fell_back})")


def compiled(function: Any) -> Any:
    """``torch.compile`` for fixed shapes, drawing random numbers as the plain net does (so that streams stay apart)."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _COMPILED_NETS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, _COMPILED_NETS)
    return torch.compile(function, dynamic=False, options={"fallback_random": True})
