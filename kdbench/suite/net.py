"""A net as a suite describes it: a model with arguments, taps, preprocessing and weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema, model_validator

from kdbench.errors import masked, nearest
from kdbench.suite.problems import Contradiction, at, find
from kdbench.suite.types import Colours, Strict
from kdbench.suite.zoo import ZOO
from kdbench.userfiles import PluginError, source_hash

#: Families of nets, in the order of tables, with their titles.
FAMILIES = {"cnn": "CNN", "vit": "ViT", "mlp": "MLP"}
Family = Literal["cnn", "vit", "mlp"]
#: How a teacher is trained on the suite's data: from scratch, or from the pretrained weights that timm knows.
TrainedHere = Literal["train", "finetune"]
#: A position in the list that timm's ``forward_intermediates`` returns; ``"final"``: the map that enters the pooling; or the path
#: of a module, whose output is taken.
Tap = int | str

#: Where a model can come from, beside timm: a key of a net, which is also a prefix of its name (``torchvision:resnet18``).
SOURCES = ("torchvision", "hf-hub", "hf", "python")

_WEIGHTS = "weights are a teacher's alone, and part of its identity: write weights: in the net"
_CLASSES = "the data set decides it"
_CODE = "it would run code, or say where code comes from"
#: Arguments that no net may have, and why.
REFUSED_ARGS = {
    **dict.fromkeys(
        ("checkpoint_path", "pretrained", "pretrained_strict", "pretrained_cfg", "pretrained_cfg_overlay", "weights",
         "weights_backbone", "cache_dir", "state_dict"), _WEIGHTS,
    ),
    **dict.fromkeys(("num_classes", "num_labels", "id2label", "label2id", "problem_type"), _CLASSES),
    "in_chans": "images have three channels",
    "num_channels": "images have three channels",
    "features_only": "a net ends in logits; taps: chooses its stages",
    "out_indices": "a net ends in logits; taps: chooses its stages",
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "nets run as plain modules"),
    **dict.fromkeys(("trust_remote_code", "auto_map"), _CODE),
    **dict.fromkeys(("device", "dtype", "torch_dtype"), "device and precision are the run's and the recipe's"),
}  # fmt: skip

_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 2, "uniqueItems": True}
#: What an ensemble may say of itself.
_OF_AN_ENSEMBLE = frozenset({"ensemble", "args", "family", "display", "published_top1", "published_source"})

_named_files: set[Path] = set()


def name_files(plugins: Iterable[str]) -> None:
    """Set the Python files that the command line names: of nets (``python:``), no other is run in this process."""
    _named_files.clear()
    _named_files.update(Path(file).resolve() for file in plugins)


class WeightsFile(Strict):
    """Weights in a file of their own: a state dict of the timm model, as safetensors or as a torch file of tensors.

    Attributes:
        file: path below ``DATA/weights/``.
        url: where it can be downloaded.
        sha256: SHA-256 of the file.
        source: who trained it, on what.
        part: key of the weights within the file, with dots; found automatically by default.
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
    """A teacher or student net. ``zoo: NAME`` starts from a net of the zoo; other fields override it. A net given as text
    is its model: ``torchvision:resnet18``.

    Attributes:
        timm: timm's name of the model, with the tag of the weights if these are timm's (``resnet50.a1_in1k``).
            ``hf-hub: OWNER/NAME`` instead: a timm model whose configuration lies on the Hugging Face hub.
        torchvision: torchvision's name of the model (``resnet18``), instead of ``timm``.
        hf: an image classifier of transformers, instead of ``timm``: a folder with its ``config.json``, relative to the
            suite's file, a repository of the hub, or a model type (``vit``). Code from a repository is never run.
        python: ``FILE:FUNCTION``, instead of ``timm``: a function or class of a file, relative to the suite's, that takes
            ``num_classes`` and returns any ``torch.nn.Module``. Runs only if the command line names the file with ``--plugin``.
        ensemble: two or more nets, instead of ``timm``: a teacher whose logits are the mean of theirs, each a teacher of its own.
            With ``args: {average: probabilities}`` the logarithm of the mean of their probabilities. It has logits only.
        args: keyword arguments of the model: of ``timm.create_model``, of torchvision's function, of the configuration of
            transformers, of your own function. ``img_size`` sets the input size too.
        family: ``cnn``, ``vit`` or ``mlp``; by default inferred (docs/nets.md).
        taps: the four stages: positions in timm's ``forward_intermediates``, ``final`` for the map that enters the pooling, or
            module paths, whose outputs are taken. By default the last four of a hierarchical timm net, and 2/12, 4/12, 10/12
            and 12/12 of the depth of a plain one; nets of other sources have no default.
        embedding: path of the module whose output is the embedding, for nets that are not timm's. By default the input of the last
            linear layer, if that gives the logits.
        class_tokens: number of class tokens in front of sequences, for nets that are not timm's.
        mean, std, input_size: preprocessing; by default the model's own configuration, of other nets ImageNet's normalisation
            and 224 px, of ``python`` nets the size of the suite's images. ``input_size`` is [height, width] in pixels.
        crop_pct, interpolation: crop and interpolation of evaluation; by default the model's own configuration.
        memory_format: memory format of the weights; activations follow. ``channels_last`` is faster for some convolutional nets and slower
            for others (``python -m benchmarks.memory_format``), and changes the last bits of results.
        weights: weights as a teacher: ``"train"`` (train on the suite's data, from scratch), ``"finetune"`` (train there from timm's
            pretrained weights, with a new classifier), ``"timm"`` (use timm's pretrained weights), or a file. A student always
            starts from scratch.
        taught_by: the net that teaches this one by ``kd``, if it is a teacher that is trained here. An assistant
            between a large teacher and a small student (TAKD), whose pair is ``assistant--student``.
        published_top1: accuracy (%) of these weights on the suite's test split, as published.
        published_source: where that was published.
        display: name in tables.
    """

    timm: str = ""
    torchvision: str = ""
    hf: str = ""
    python: str = ""
    #: In a suite's file the names; ``Suite.net`` has the nets by name.
    ensemble: Annotated[tuple[str, ...] | dict[str, Any], WithJsonSchema(_NAMES)] = ()
    args: dict[str, Any] = {}
    family: Family | None = None
    taps: Annotated[tuple[Tap, ...], Field(min_length=4, max_length=4)] | None = None
    embedding: str | None = None
    class_tokens: Annotated[int, Field(ge=0)] = 0
    mean: Colours | None = None
    std: Colours | None = None
    input_size: tuple[int, int] | None = None
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    weights: Literal["train", "finetune", "timm"] | WeightsFile = "train"
    taught_by: str = ""
    display: str | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    published_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    published_source: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_model(cls, content: Any) -> Any:
        """The zoo's fields for ``zoo: NAME``, and the model under the key of its source."""
        if isinstance(content, str):
            content = {"timm": content}
        if not isinstance(content, dict):
            return content
        own = dict(content)
        if "zoo" in own:
            name = str(own.pop("zoo"))
            with at("zoo"):
                find("net", name, ZOO)
            own = {**ZOO[name], **own}
        if "hf-hub" in own:
            own["timm"] = f"hf-hub:{own.pop('hf-hub')}"
        source, colon, name = str(own.get("timm") or "").partition(":")
        if colon and source in SOURCES and source != "hf-hub":
            del own["timm"]
            own[source] = name.strip()
        elif colon and source != "hf-hub":
            raise Contradiction(f"models come from timm or {', '.join(SOURCES)}; {nearest(source, SOURCES)}", "timm")
        given = [key for key in ("timm", "torchvision", "hf", "python", "ensemble") if own.get(key)]
        if len(given) > 1:
            raise Contradiction(f"{' and '.join(given)} name two models; write one", given[1])
        if not given:
            raise Contradiction("timm is missing (or another model: torchvision, hf-hub, hf, python, ensemble)")
        return own

    @model_validator(mode="after")
    def _consistent(self) -> NetSpec:
        for key, value in self.args.items():
            reason = REFUSED_ARGS.get(key)
            if key == "global_pool" and not value:
                reason = "a net ends in logits, for which it must pool"
            if reason:
                raise Contradiction(f"{key} cannot be set: {reason}", "args", key)
        if self.ensemble:
            names = list(self.ensemble)
            if len(names) < 2 or len(set(names)) < len(names):
                raise Contradiction(f"{', '.join(names)}: must be two or more different nets", "ensemble")
            if self.args not in ({}, *({"average": value} for value in ("logits", "probabilities"))):
                raise Contradiction("an ensemble takes average: logits or average: probabilities, and no more", "args")
            for key, field in type(self).model_fields.items():
                if key not in _OF_AN_ENSEMBLE and getattr(self, key) != field.default:
                    raise Contradiction("an ensemble has none of its own; write it in its nets", key)
        if self.weights in ("timm", "finetune") and not ("." in self.timm or self.timm.startswith("hf-hub:")):
            raise Contradiction(
                f"weights: {self.weights} needs the tag of timm's weights in the name, as in resnet50.a1_in1k "
                f"(found {self.model!r})",
                "timm" if self.timm else "weights",
            )
        if self.python and not all(self.python.rpartition(":")[::2]):
            raise Contradiction(f"{self.python!r} is not of the form FILE:FUNCTION", "python")
        if self.taught_by and not self.trained_here:
            raise Contradiction("it has weights already; an assistant is trained here", "taught_by")
        if self.timm and (self.embedding is not None or self.class_tokens):
            raise Contradiction(
                "timm's nets know their own embedding and class tokens",
                "class_tokens" if self.class_tokens else "embedding",
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The fields, the two keys that stand for others, or text alone."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema["properties"] |= {
            "zoo": {"enum": sorted(ZOO), "description": "a net of the zoo to start from"},
            "hf-hub": {"type": "string", "description": "a timm model on the Hugging Face hub"},
        }
        return {"anyOf": [schema, {"type": "string"}]}

    @property
    def model(self) -> str:
        """The model with its source: ``resnet18``, ``torchvision:resnet18``."""
        others = {
            "torchvision": self.torchvision,
            "hf": self.hf,
            "python": self.python,
            "ensemble": "+".join(self.ensemble),
        }
        return self.timm or next(f"{source}:{name}" for source, name in others.items() if name)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the input in pixels where the suite sets it: ``input_size``, or ``img_size`` of ``args``."""
        if self.input_size is not None:
            return self.input_size
        size = self.args.get("img_size", self.args.get("image_size"))
        if isinstance(size, int):
            return size, size
        return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else None

    @property
    def python_file(self) -> Path:
        """The file of a ``python`` net."""
        return Path(self.python.rpartition(":")[0])

    @property
    def unnamed_file(self) -> str | None:
        """Why a ``python`` net must not be built: its file is not among those that the command line names."""
        if not self.python or self.python_file.resolve() in _named_files:
            return None
        file = self.python_file
        return f"it is made by {file}; a suite's Python runs only when you name it too: --plugin {file}"

    def beside(self, folder: Path) -> NetSpec:
        """The net of a suite's file in ``folder``, from which its own files are seen."""
        if self.python:
            return self.model_copy(update={"python": str(folder / self.python)})
        if self.hf and (folder / self.hf).is_dir():
            return self.model_copy(update={"hf": str(folder / self.hf)})
        return self

    @property
    def members(self) -> dict[str, NetSpec]:
        """The nets of an ensemble by name, once ``Suite.net`` has looked them up."""
        nets = self.ensemble if isinstance(self.ensemble, dict) else {}
        return {name: NetSpec.model_validate(net) for name, net in nets.items()}

    @property
    def teachers(self) -> tuple[str, ...]:
        """The nets that must be ready before this one is, as a teacher."""
        return (*self.ensemble, *([self.taught_by] if self.taught_by else []))

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
        for field in ("timm", "torchvision", "hf", "python", "ensemble", "taught_by", "embedding", "class_tokens"):
            if not content[field]:
                del content[field]
        if self.ensemble:
            content["ensemble"] = list(self.ensemble)
        if isinstance(self.weights, WeightsFile):
            content["weights"] = self.weights.identity()
        if self.python:  # what the file says, not where it lies
            content["python"] = f"{self.python_file.name}:{self.python.rpartition(':')[2]}"
            content["source"] = _source_of(self.python_file)
        elif (Path(self.hf) / "config.json").is_file():
            content["hf"] = {"config": hashlib.sha256((Path(self.hf) / "config.json").read_bytes()).hexdigest()[:12]}
        return content


def _source_of(path: Path) -> str:
    """Hash of a file of a net, with the modules beside it; empty where it cannot be read: its net cannot be built either."""
    try:
        return source_hash(path)
    except (PluginError, OSError, ValueError):
        return ""


@functools.cache
def zoo_net(name: str) -> NetSpec:
    """The net of the zoo called ``name``.

    Raises:
        ValidationError: with the nearest name, if there is none.
    """
    return NetSpec.model_validate({"zoo": name})
