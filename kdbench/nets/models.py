"""Building a net's model, from timm, torchvision, transformers or a file of the user's."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_model_config_from_hf
from torch import nn

import kdbench.nets.classic.models
import kdbench.nets.small
import kdbench.nets.swin_small  # noqa: F401 - all three register nets with timm
from kdbench.errors import KdbenchError, nearest
from kdbench.nets.ensemble import Ensemble
from kdbench.suite.net import NetSpec
from kdbench.userfiles import PluginError, import_source, plugin_module

#: Preprocessing of models that bring none.
_IMAGENET: dict[str, Any] = {
    "input_size": (224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
}

#: Modules with weights that files of the user's have made and that are still there.
_made: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class NetError(KdbenchError):
    """A net that cannot be built or tapped; ``details`` is the traceback of the user's own code."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def build_model(
    spec: NetSpec, num_classes: int, name: str, build: Callable[[NetSpec, int, str], nn.Module]
) -> nn.Module:
    """The model of a net, with random weights; ``build`` makes the nets of an ensemble.

    Raises:
        NetError: for a name or an argument that its source does not know, and whatever else goes wrong.
    """
    if spec.timm:
        net = _timm(spec, num_classes, name)
    elif spec.torchvision:
        net = _torchvision(spec, num_classes, name)
    elif spec.hf:
        net = _transformers(spec, num_classes, name)
    elif spec.ensemble:
        net = Ensemble(spec, num_classes, build)
    else:
        # Code of the user's may read values, which the device "meta" has not, and keep tensors.
        with torch.device("cpu"):
            net = _python(spec, num_classes, name)
        net = net.to(torch.get_default_device())
    return net.to(memory_format=torch.channels_last) if spec.memory_format == "channels_last" else net


def configuration_of(net: Any, spec: NetSpec) -> dict[str, Any]:
    """Input size and normalisation of a net that is built: the suite's, else the model's own."""
    if not spec.timm:
        return preprocessing_of(spec)
    own = net.pretrained_cfg
    size = spec.size or tuple(own["input_size"][1:])
    return {"input_size": size, **{key: tuple(getattr(spec, key) or own[key]) for key in ("mean", "std")}}


def preprocessing_of(spec: NetSpec) -> dict[str, Any]:
    """Input size, normalisation and evaluation crop of a net as fields of a ``NetSpec``; the model's own where it sets none.

    Raises:
        NetError: for a model that is not known.
    """
    if spec.members:  # which normalise for themselves
        nets = [preprocessing_of(net) for net in spec.members.values()]
        return {**max(nets, key=lambda net: net["input_size"]), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    own = {**_IMAGENET, **_configuration(spec.model_copy(update={"args": {}, "weights": "train"}).model_dump_json())}
    return {"input_size": spec.size or own["input_size"]} | {
        key: getattr(spec, key) or own[key] for key in ("mean", "std", "crop_pct", "interpolation")
    }


@functools.lru_cache(maxsize=256)
def _configuration(net: str) -> dict[str, Any]:
    """What a model says of its preprocessing."""
    spec = NetSpec.model_validate_json(net)
    if spec.timm:
        config: dict[str, Any]
        if spec.timm.startswith("hf-hub:"):
            config = dict(
                _try("timm", spec, spec.model, load_model_config_from_hf, spec.timm.removeprefix("hf-hub:"))[0]
            )
        else:
            _check_known(spec, spec.model)
            config = timm.get_pretrained_cfg(spec.timm).to_dict()
        return {**config, "input_size": tuple(config["input_size"][1:]), **_colours(config["mean"], config["std"])}
    if spec.torchvision:
        from torchvision import models

        _check_known(spec, spec.model)
        shown = models.get_model_weights(spec.torchvision).DEFAULT.transforms()
        side, whole = shown.crop_size[0], shown.resize_size[0]
        return {
            "input_size": (side, side),
            "crop_pct": min(1.0, side / whole),
            "interpolation": shown.interpolation.value,
            **_colours(shown.mean, shown.std),
        }
    if spec.hf:
        size = getattr(_hf_config(spec, 10, spec.model), "image_size", None)
        content = _hf_preprocessor(spec.hf)
        colours = _colours(content["image_mean"], content["image_std"]) if "image_mean" in content else {}
        if size is None:
            return colours
        return {"input_size": (size, size) if isinstance(size, int) else tuple(size), **colours}
    return {}


def _colours(mean: Any, std: Any) -> dict[str, Any]:
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}


def _check_known(spec: NetSpec, name: str) -> None:
    """Refuse a name that timm or torchvision does not know."""
    if spec.timm:
        base = spec.timm.split(".")[0]
        if not timm.is_model(base):
            raise NetError(f"net {name}: timm has no model {spec.timm!r}; {nearest(base, timm.list_models())}")
    else:
        from torchvision import models

        known = models.list_models(module=models)
        if spec.torchvision not in known:
            raise NetError(
                f"net {name}: torchvision has no classifier {spec.torchvision!r}; {nearest(spec.torchvision, known)}"
            )


def _try(source: str, spec: NetSpec, name: str, build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what builds a model; whatever goes wrong becomes one sentence."""
    try:
        return build(*args, **kwargs)
    except Exception as error:  # libraries refuse in many ways
        words = str(error).strip().splitlines()
        given = f" with {spec.args}" if spec.args else ""
        raise NetError(
            f"net {name}: {source} cannot build {spec.model}{given}: {words[0] if words else type(error).__name__}"
        ) from error


def _timm(spec: NetSpec, num_classes: int, name: str) -> nn.Module:
    if not spec.timm.startswith("hf-hub:"):
        _check_known(spec, name)
    build: Any = timm.create_model
    net: nn.Module = _try("timm", spec, name, build, spec.timm, pretrained=False, num_classes=num_classes, **spec.args)
    for method in ("forward_intermediates", "forward_head"):
        if not hasattr(net, method):
            raise NetError(f"net {name}: {spec.timm} has no {method}; choose a timm model that has")
    return net


def _torchvision(spec: NetSpec, num_classes: int, name: str) -> nn.Module:
    from torchvision import models

    _check_known(spec, name)
    args = {"weights": None, "num_classes": num_classes, **spec.args}
    if spec.torchvision in ("googlenet", "inception_v3"):
        args = {"init_weights": True, **args}  # torchvision warns that this default will change
    return _try("torchvision", spec, name, models.get_model, spec.torchvision, **args)


def _transformers(spec: NetSpec, num_classes: int, name: str) -> nn.Module:
    config = _hf_config(spec, num_classes, name)
    config.architectures = config.architectures or []  # of several classes of a type (DeiT, LeViT) the first
    from transformers import AutoModelForImageClassification

    build: Any = AutoModelForImageClassification.from_config
    return _try("transformers", spec, name, build, config, trust_remote_code=False)


def _hf_config(spec: NetSpec, num_classes: int, name: str) -> Any:
    """The configuration of a model of transformers, with the suite's ``args``; an unknown one is refused."""
    try:
        from transformers import CONFIG_MAPPING, AutoConfig
    except ImportError:
        raise NetError(
            f"net {name}: {spec.model} needs the package transformers; pip install 'kdbench[transformers]'"
        ) from None
    build: Any = functools.partial(AutoConfig.from_pretrained, spec.hf, trust_remote_code=False)
    if not Path(spec.hf).is_dir() and spec.hf in CONFIG_MAPPING:
        build = functools.partial(AutoConfig.for_model, spec.hf)
    plain = _try("transformers", spec, name, build)
    args = dict(spec.args)
    if "img_size" in args:
        args["image_size"] = args.pop("img_size")
    for key in args:
        if not hasattr(plain, key):
            raise NetError(
                f"net {name}: the configuration of {spec.model} has no {key}; {nearest(key, plain.to_dict())}"
            )
    return _try("transformers", spec, name, build, num_labels=num_classes, **args)


def _hf_preprocessor(hf: str) -> dict[str, Any]:
    """The content of a model's ``preprocessor_config.json``; empty without one."""
    from transformers import CONFIG_MAPPING
    from transformers.utils import cached_file

    if not Path(hf).is_dir() and hf in CONFIG_MAPPING:
        return {}
    try:
        path = cached_file(hf, "preprocessor_config.json")
        return json.loads(Path(path or "").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _python(spec: NetSpec, num_classes: int, name: str) -> nn.Module:
    if spec.unnamed_file:
        raise NetError(f"net {name}: {spec.unnamed_file}")
    file, function = spec.python_file, spec.python.rpartition(":")[2]
    if not file.is_file():
        raise NetError(f"net {name}: {file}: no such file")
    module = plugin_module(file)
    try:
        if module not in sys.modules:
            import_source(module, file)
    except PluginError as error:
        raise NetError(f"net {name}: {str(error).removeprefix('plugin ')}", error.details) from None
    make = getattr(sys.modules[module], function, None)
    if not callable(make):
        own = {key for key, value in vars(sys.modules[module]).items() if callable(value)}
        raise NetError(f"net {name}: {file} has no function {function!r}; {nearest(function, own)}")
    try:
        inspect.signature(make).bind(num_classes=num_classes, **spec.args)
    except TypeError as error:
        raise NetError(
            f"net {name}: {function} of {file} cannot be called with num_classes and {spec.args}: {error}"
        ) from None
    try:
        net = make(num_classes=num_classes, **spec.args)
    except (Exception, SystemExit) as error:  # a net must not end the run of the others
        details = "".join(traceback.format_exception(error, chain=False))
        problem = f"net {name}: {function} of {file} raised {type(error).__name__}: {error}"
        raise NetError(problem, details) from error
    if not isinstance(net, nn.Module):
        raise NetError(f"net {name}: {function} of {file} returned {type(net).__name__}, not a torch.nn.Module")
    with_values = {path: part for path, part in net.named_modules() if [*part.parameters(False), *part.buffers(False)]}
    if again := [path for path, part in with_values.items() if part in _made]:
        parts = ", ".join(path or "the net itself" for path in again[:3])
        raise NetError(
            f"net {name}: {function} of {file} returned weights of an earlier call once more ({parts}); "
            "make all modules anew in each call, since every student has its own"
        )
    _made.update(with_values.values())
    return net
