"""A net as a suite describes it: a timm model with arguments, taps, preprocessing and weights."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.errors import masked
from kdbench.suite.problems import Contradiction, at, find
from kdbench.suite.types import Colours, Strict
from kdbench.suite.zoo import ZOO

#: Families of nets, in the order of tables, with their titles.
FAMILIES = {"cnn": "CNN", "vit": "ViT", "mlp": "MLP"}
Family = Literal["cnn", "vit", "mlp"]
#: How a teacher is trained on the suite's data: from scratch, or from the pretrained weights that timm knows.
TrainedHere = Literal["train", "finetune"]
#: A position in the list that timm's ``forward_intermediates`` returns, or ``"final"``: the map that enters the pooling.
Tap = int | Literal["final"]

#: Arguments that no net may have, and why: timm would read files, or build another net than the suite says.
REFUSED_ARGS = {
    **dict.fromkeys(
        ("checkpoint_path", "pretrained", "pretrained_strict", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
        "weights are a teacher's alone, and part of its identity: write weights: in the net",
    ),
    "num_classes": "the data set decides it",
    "features_only": "a net ends in logits; taps: chooses its stages",
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "nets run as plain modules"),
}


class WeightsFile(Strict):
    """Weights in a file of their own: a state dict of the timm model, as safetensors or as a torch file of tensors.

    Attributes:
        file: its name below ``DATA/weights/``.
        url: where it can be fetched, if anywhere.
        sha256: of the file.
        source: who trained it, on what.
        part: where in the file they lie, as the keys that lead there, with dots; found by itself where it is not given.
    """

    file: Annotated[str, Field(min_length=1, max_length=1000)]
    url: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    source: str | None = None
    part: str | None = None

    @model_validator(mode="after")
    def _stays_inside(self) -> WeightsFile:
        for name in ("file", "url"):
            text = getattr(self, name) or ""
            if not text.isprintable():
                raise Contradiction(f"{masked(text)!r} has a character that cannot be printed", name)
        if self.file.startswith(("/", "~")) or ".." in self.file.split("/") or "\\" in self.file:
            raise Contradiction(f"{self.file!r} leaves the folder of the weights", "file")
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise Contradiction(f"{masked(self.url)!r} is no address that begins with https:// or http://", "url")
        return self

    def identity(self) -> dict[str, str]:
        """The checksum where it is given, else the name of the file; and the part of it."""
        found = {"sha256": self.sha256} if self.sha256 else {"file": self.file}
        return {**found, "part": self.part} if self.part else found


class NetSpec(Strict):
    """A teacher or student net, as a suite writes it. ``zoo: NAME`` starts from a net of the zoo; what else is written replaces
    its fields.

    Attributes:
        timm: name of the timm model, with the tag of its weights where these are timm's (``resnet50.a1_in1k``).
        args: keyword arguments of ``timm.create_model``.
        family: inferred from the timm model where it is not given.
        taps: the four stages; by default the last four of a hierarchical net, and 2/12, 4/12, 10/12 and 12/12 of the depth
            of a plain one.
        mean, std, input_size: preprocessing, from the model's timm configuration where not given. ``input_size`` in pixels.
        crop_pct, interpolation: of evaluation, from the model's timm configuration where not given.
        memory_format: of the weights; activations follow. ``channels_last`` is faster for some convolutional nets and slower
            for others (``python -m benchmarks.memory_format``), and changes the last bits of results.
        weights: of a teacher: ``"train"`` (train it on the suite's data, from scratch), ``"finetune"`` (train it there from the
            pretrained weights that timm knows, with a new head), ``"timm"`` (take those weights as they are), or a file. A
            student starts from scratch whatever it says.
        published_top1: accuracy (%) of these weights on the suite's test split, as published, and ``published_source``.
        display: the name that tables print.
    """

    timm: str
    args: dict[str, Any] = {}
    family: Family | None = None
    taps: Annotated[tuple[Tap, ...], Field(min_length=4, max_length=4)] | None = None
    mean: Colours | None = None
    std: Colours | None = None
    input_size: tuple[int, int] | None = None
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    weights: Literal["train", "finetune", "timm"] | WeightsFile = "train"
    display: str | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    published_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    published_source: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _starts_from_the_zoo(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "zoo" not in content:
            return content
        own = dict(content)
        name = str(own.pop("zoo"))
        with at("zoo"):
            find("net", name, ZOO)
        return {**ZOO[name], **own}

    @model_validator(mode="after")
    def _has_its_tag(self) -> NetSpec:
        for key in self.args.keys() & REFUSED_ARGS.keys():
            raise Contradiction(f"{key} cannot be set: {REFUSED_ARGS[key]}", "args", key)
        if self.weights in ("timm", "finetune") and "." not in self.timm:
            raise Contradiction(
                f"weights: {self.weights} needs the tag of timm's weights in the name, as in resnet50.a1_in1k "
                f"(found {self.timm!r})",
                "timm",
            )
        return self

    @property
    def trained_here(self) -> bool:
        """Whether a teacher is trained on the suite's data; else it comes with weights."""
        return self.weights in ("train", "finetune")

    def with_weights(self, weights: TrainedHere) -> NetSpec:
        """The same net, trained here.

        Raises:
            ValidationError: if it is to be fine-tuned and its name has no tag.
        """
        return NetSpec.model_validate({**self.model_dump(), "weights": weights})

    def identity(self) -> dict[str, Any]:
        """Everything that a result depends on."""
        content = self.model_dump(mode="json", exclude={"display", "published_top1", "published_source"})
        if isinstance(self.weights, WeightsFile):
            content["weights"] = self.weights.identity()
        return content


@functools.cache
def zoo_net(name: str) -> NetSpec:
    """The net of the zoo called ``name``.

    Raises:
        ValidationError: with the nearest name, if there is none.
    """
    return NetSpec.model_validate({"zoo": name})
