"""How a run uses its machine: what changes time and memory, and results at most in their last bits. Part of no identity.

What changes last bits is off unless it is asked for, since a result must not depend on the machine that it was made on; what
was used stands in the result's ``cost``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """Attributes:
    compile: run nets through ``torch.compile``; one that does not compile runs as it is, and its log says so.
    graphs: on a GPU, steps are recorded as CUDA graphs and replayed: the same kernels, without launching each of them. On,
        since it changes no number; what cannot be recorded runs as it is, and its log says so.
    """

    compile: bool = False
    graphs: bool = True

    def facts(self) -> dict[str, Any]:
        """What is not the default, for the result of a cell."""
        return {name: value for name, value in asdict(self).items() if value != getattr(PLAIN, name)}


#: Nothing is tuned.
PLAIN = Tuning()
