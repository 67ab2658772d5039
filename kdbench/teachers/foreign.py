"""Weights from files of others, read without running any of their code and fitted to a net as timm has it today."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, counted
from kdbench.nets.models import build_model
from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import NetSpec

#: Keys under which training scripts keep a state dict, in the order of preference: timm's takes averaged weights first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "net", "module")
#: What wrappers of a model put before all its keys.
PREFIXES = ("_orig_mod.", "module.", "model.")
#: Types that training scripts save beside the weights and that only hold values. timm's checkpoints hold their options in the
#: first, and the accuracy that was reached in the others.
HARMLESS: tuple[Any, ...] = (argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType)


class WeightsError(KdbenchError):
    """A file of weights that cannot be used."""


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a safetensors file or a torch file, out of whatever it is wrapped in.

    Returns:
        the state dict, and the key under which it lay (empty if it was not wrapped).

    Raises:
        WeightsError: for a file that is cut, is no file of weights, or needs code to be loaded.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from None
    if not head:
        raise WeightsError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS, not the weights; git lfs pull fetches them")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not weights; fetch the file that the page links to")
    if path.suffix == ".npz":
        raise WeightsError(f"{path} is an archive of NumPy; convert it to a state dict of the timm model first")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is cut or damaged ({path.stat().st_size:,} bytes; safetensors says: {_first_line(error)})"
        ) from None


def _read_torch(path: Path) -> Any:
    scalar = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [*HARMLESS, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = _needed_code(str(error))
        if needed is None:
            raise WeightsError(
                f"{path} is cut, damaged, or no file of weights ({path.stat().st_size:,} bytes; expected a safetensors "
                "file or what torch.save wrote)"
            ) from None
        raise WeightsError(
            f"{path} needs {needed} to be loaded, which could run anything: refused. If you trust it, keep only its tensors: "
            f"python -c \"import torch; c = torch.load('{path.name}', weights_only=False); "
            f"torch.save(c.get('state_dict', c), 'converted.pth')\""
        ) from None
    except Exception as error:  # cut archives end in errors of many types
        raise WeightsError(
            f"{path} is cut or damaged ({path.stat().st_size:,} bytes; expected what "
            f"torch.save wrote; torch says: {_first_line(error)})"
        ) from None


def _needed_code(message: str) -> str | None:
    """The first function or class that torch refused to use, or None if that was not the reason."""
    match = re.search(r"GLOBAL ([\w.]+)|([\w.]+) was not an allowed|blocked (?:global|module) ?`?([\w.]+)", message)
    return next(group for group in match.groups() if group) if match else None


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    part = ""
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]), None)
        if inner is None:
            break
        content, part = content[inner], f"{part}.{inner}" if part else inner
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{path} holds no state dict (found {type(content).__name__}); expected tensors by name, or these below "
            f"{', '.join(WRAPPERS)}"
        )
    # torch's AveragedModel counts beside the weights
    state = {str(key): value for key, value in content.items() if key != "n_averaged"}
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise WeightsError(
            f"{path} holds no state dict: {other[0]!r} is {type(state[other[0]]).__name__}, not a tensor"
            + (f" (and {len(other) - 1} more)" if len(other) > 1 else "")
        )
    while True:
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            return state, part
        state = {key.removeprefix(prefix): value for key, value in state.items()}


def load_state(
    net: TappedNet, path: Path, rows: Sequence[int] | None = None, num_classes: int | None = None
) -> dict[str, Any]:
    """Load weights into a net, its classifier included.

    Args:
        net: where they go.
        path: of the file.
        rows: where the classifier of the weights is ``num_classes`` wide and the net narrower: which of its classes are the
            net's, in this order.
        num_classes: number of classes among which ``rows`` choose.

    Returns:
        what is to be recorded: ``part`` of the file that was used, ``classes`` of the weights, how many ``rows`` were taken, and
        how many tensors were ``resized`` (position embeddings, patches) to the net's size.

    Raises:
        WeightsError: if the file cannot be read or does not fit.
    """
    state, part = read_state(path)
    width = _head_width(net, state)
    own = net.num_classes
    chosen = rows if rows is not None and width == num_classes and width != own else None
    if width != own and chosen is None:
        raise WeightsError(
            f"{path} has {width} classes, net {net.name} needs {own}: weights for other data; to train this teacher from "
            f"timm's weights with a new classifier use --fine-tune-teachers {net.name}"
        )
    fitted = _fit(net.spec, state, width, net.name, path)
    resized = _resized(state, fitted)
    if chosen is not None:
        for key in _classifier_keys(net):
            fitted[key] = fitted[key][torch.as_tensor(chosen)]
    net.net.load_state_dict(fitted)
    taken = None if chosen is None else len(chosen)
    return {"part": part, "classes": width, "rows": taken, "resized": resized}


def load_body(net: TappedNet, path: Path) -> dict[str, Any]:
    """Load weights into a net that keeps its own, new classifier: where fine-tuning starts.

    Returns and raises: as ``load_state``.
    """
    state, part = read_state(path)
    width = _head_width(net, state)
    fitted = _fit(net.spec, state, width, net.name, path)
    resized = _resized(state, fitted)
    new = net.net.state_dict()
    fitted.update({key: new[key] for key in _classifier_keys(net)})
    net.net.load_state_dict(fitted)
    return {"part": part, "classes": width, "rows": None, "resized": resized}


def _resized(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many tensors have a size that no tensor of the file had; what only moved to another name has kept its own."""
    sizes = [Counter(value.numel() for value in state.values()) for state in (after, before)]
    return sum((sizes[0] - sizes[1]).values())


def _classifier_keys(net: TappedNet) -> list[str]:
    return [key for key in net.net.state_dict() if key.startswith(tuple(f"{path}." for path in net.classifier_paths))]


def _head_width(net: TappedNet, state: Mapping[str, Tensor]) -> int:
    """Number of classes of a state dict, whose classifier may have the name that it has in another version of timm."""
    own = [key for key in _classifier_keys(net) if key.endswith(".weight")]
    for key in (*own, "head.fc.weight", "head.weight", "fc.weight", "classifier.weight"):
        if key in state and state[key].ndim >= 2:
            return int(state[key].shape[0])
    return net.num_classes


def _fit(spec: NetSpec, state: dict[str, Tensor], width: int, name: str, path: Path) -> dict[str, Tensor]:
    """A state dict of the net with ``width`` classes; keys and shapes of other layouts are changed as timm does it.

    timm knows how the layouts of earlier versions and of the authors' own code become today's (Swin's downsampling moved
    between stages after 0.6, position embeddings are resized to another image size). It is given the tensors, not the file.
    """
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            empty = build_model(spec, width, name)
        wanted = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
        given = {key: tuple(value.shape) for key, value in state.items()}
        if given == wanted:
            return dict(state)
        if not spec.timm:
            problem = _difference(wanted, given, ValueError())
            raise WeightsError(f"{path} does not fit net {name} ({spec.model}, {width} classes): {problem}")
        overlay = {"state_dict": dict(state), "num_classes": width, "label_offset": 0}
        try:
            net = timm.create_model(
                spec.timm, pretrained=True, num_classes=width, pretrained_cfg_overlay=overlay, **spec.args
            )
        except Exception as error:  # what timm raises for another architecture depends on where it notices
            changed = _as_today(empty, state)
            found = {key: tuple(value.shape) for key, value in changed.items()}
            if found == wanted:
                return changed
            problem = _difference(wanted, found, error)
            raise WeightsError(f"{path} does not fit net {name} ({spec.timm}, {width} classes): {problem}") from None
    return dict(net.state_dict())


def _difference(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], error: Exception) -> str:
    """What keys and shapes differ, and what that is likely to mean."""
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    shapes = [key for key in wanted if key in found and found[key] != wanted[key]]
    parts = [
        f"{counted(len(keys), 'key')} {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, word in ((missing, "missing"), (unknown, "unknown"))
        if keys
    ]
    if shapes:
        first = shapes[0]
        parts.append(
            f"{counted(len(shapes), 'tensor')} of another shape ({first}: found {found[first]}, expected {wanted[first]}"
            f"{', ...' if len(shapes) > 1 else ''})"
        )
    if len(missing) > len(wanted) / 2:
        cause = "another architecture"
    elif shapes:
        cause = "another size of the net, or other args of it (depth, width, patch size, image size)"
    elif missing or unknown:
        cause = "another variant of the net, or other args of it"
    else:
        parts, cause = [f"{type(error).__name__}: {_first_line(error)}"], "a layout that timm does not know"
    return f"{'; '.join(parts)}; likely {cause}"


def _as_today(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict after the filter of the timm module of the net's class, which timm uses only for its own models."""
    modules = (sys.modules[cls.__module__] for cls in type(net).__mro__)
    change = next((found for module in modules if (found := getattr(module, "checkpoint_filter_fn", None))), None)
    try:
        return dict(change(dict(state), net)) if change else state
    except Exception:  # it was written for other keys
        return state


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].partition(". ")[0] if text else type(error).__name__
