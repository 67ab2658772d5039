"""What names a net: a timm model with arguments, its taps and its preprocessing. Works without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FAMILIES = ("cnn", "vit", "mlp")
Family = Literal["cnn", "vit", "mlp"]
#: A position in the list that timm's ``forward_intermediates`` returns, or ``"final"``: the map that enters the pooling.
Tap = int | Literal["final"]


class NetSpec(BaseModel):
    """A teacher or student net, as a suite writes it.

    Attributes:
        timm: name of the timm model.
        args: keyword arguments of ``timm.create_model``.
        family: inferred from the timm model where it is not given.
        taps: the four stages; by default the last four of a hierarchical net, and 2/12, 4/12, 10/12 and 12/12 of the depth
            of a plain one.
        mean, std, input_size: preprocessing, from the model's timm configuration where not given. ``input_size`` in pixels.
        weights: ``"train"`` (train it on the suite's data), or ``"timm"`` (the pretrained weights that timm knows).
        display: the name that tables print.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timm: str
    args: dict[str, Any] = {}
    family: Family | None = None
    taps: Annotated[tuple[Tap, ...], Field(min_length=4, max_length=4)] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    input_size: tuple[int, int] | None = None
    weights: Literal["train", "timm"] = "train"
    display: str | None = None
