"""Weights from files of others, fitted to a net as it is today."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from kdbench.errors import counted
from kdbench.nets.models import build_model
from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import WeightsFile
from kdbench.teachers.statedict import WeightsError, choose_state, first_line, read_tensors

#: Takes a sentence for the user.
Say = Callable[[str], None]


def load_state(
    net: TappedNet,
    path: Path,
    rows: Sequence[int] | None = None,
    num_classes: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Load weights into a net, its classifier included.

    Args:
        net: where they go.
        path: of the file.
        rows: where the classifier of the weights is ``num_classes`` wide and the net narrower: which of its classes are the
            net's, in this order.
        num_classes: number of classes among which ``rows`` choose.
        say: takes a sentence on what else is in the file.

    Returns:
        what is to be recorded: ``part`` of the file that was used, ``classes`` of the weights, how many ``rows`` were taken, and
        how many tensors were ``resized`` (position embeddings, patches) to the net's size.

    Raises:
        WeightsError: if the file cannot be read, does not fit, or holds numbers that are not finite.
    """
    state, part = _choose(net, path, say)
    width = _head_width(net, state)
    own = net.num_classes
    chosen = rows if rows is not None and width == num_classes and width != own else None
    if width != own and chosen is None:
        raise WeightsError(
            f"{path} has {width} classes, net {net.name} needs {own}: weights for other data; to train this teacher from "
            f"timm's weights with a new classifier use --fine-tune-teachers {net.name}"
        )
    fitted = _fit(net, state, width, path)
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
    state, part = _choose(net, path)
    width = _head_width(net, state)
    fitted = _fit(net, state, width, path)
    resized = _resized(state, fitted)
    new = net.net.state_dict()
    fitted.update({key: new[key] for key in _classifier_keys(net)})
    net.net.load_state_dict(fitted)
    return {"part": part, "classes": width, "rows": None, "resized": resized}


def _choose(net: TappedNet, path: Path, say: Say = lambda text: None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file that are the net's, and where they lay; by itself, or at the part that the suite names."""
    weights = net.spec.weights
    wanted = {key: tuple(value.shape) for key, value in net.net.state_dict().items()}
    part = weights.part if isinstance(weights, WeightsFile) else None
    chosen = choose_state(read_tensors(path), wanted, path, part)
    for note in chosen.notes:
        say(note)
    return chosen.state, chosen.part


def _resized(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """How many tensors have a size that no tensor of the file had; what only moved to another name has kept its own.

    Counters of integers, which files of old torch lack, are none of them.
    """
    sizes = [
        Counter(value.numel() for value in state.values() if value.is_floating_point()) for state in (after, before)
    ]
    return sum((sizes[0] - sizes[1]).values())


def _classifier_keys(net: TappedNet) -> list[str]:
    """Keys of the classifier, or of several (distilled nets)."""
    return [key for key in net.net.state_dict() if key.startswith(tuple(f"{path}." for path in net.classifier_paths))]


def _head_width(net: TappedNet, state: Mapping[str, Tensor]) -> int:
    """Number of classes of a state dict, whose classifier may have the name that it has in another version of timm."""
    own = [key for key in _classifier_keys(net) if key.endswith(".weight")]
    for key in (*own, "head.fc.weight", "head.weight", "fc.weight", "classifier.weight"):
        if key in state and state[key].ndim >= 2:
            return int(state[key].shape[0])
    return net.num_classes


def _fit(own: TappedNet, state: dict[str, Tensor], width: int, path: Path) -> dict[str, Tensor]:
    """A state dict of the net with ``width`` classes, all of its numbers finite."""
    fitted = _as_wanted(own, state, width, path)
    broken = [key for key, value in fitted.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{path}: {counted(len(broken), 'tensor')} of net {own.name} {'holds' if len(broken) == 1 else 'hold'} numbers "
            f"that are not finite ({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''})"
        )
    return fitted


def _as_wanted(own: TappedNet, state: dict[str, Tensor], width: int, path: Path) -> dict[str, Tensor]:
    """A state dict with the net's keys and shapes; those of other layouts are changed as timm does it.

    timm knows how the layouts of earlier versions and of the authors' own code become today's (Swin's downsampling moved
    between stages after 0.6, position embeddings are resized to another image size). It is given the tensors, not the file.
    """
    spec, name = own.spec, own.name
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            empty = build_model(spec, width, name, TappedNet)
        wanted = {key: tuple(value.shape) for key, value in empty.state_dict().items()}
        # torch before 0.4.1 did not count the batches of BatchNorm
        counts = {key: torch.tensor(0) for key in wanted if key.endswith(".num_batches_tracked") and key not in state}
        state = {**state, **counts}
        given = {key: tuple(value.shape) for key, value in state.items()}
        if given == wanted:
            return state
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
            raise WeightsError(
                f"{path} does not fit net {name} ({spec.timm or 'no timm model'}, {width} classes): {problem}"
            ) from None
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
        parts, cause = [f"{type(error).__name__}: {first_line(error)}"], "a layout that timm does not know"
    return f"{'; '.join(parts)}; likely {cause}"


def _as_today(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict after the filter of the timm module of the net's class, which timm uses only for its own models."""
    modules = (sys.modules[cls.__module__] for cls in type(net).__mro__)
    change = next((found for module in modules if (found := getattr(module, "checkpoint_filter_fn", None))), None)
    try:
        return dict(change(dict(state), net)) if change else state
    except Exception:  # it was written for other keys
        return state
