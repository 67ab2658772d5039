"""Where a net is tapped: positions of timm's list or paths of modules; and what a module puts out, as a map."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from kdbench.errors import nearest
from kdbench.method import NUM_STAGES
from kdbench.nets.classic.net import ClassicNet
from kdbench.nets.models import NetError
from kdbench.suite.net import Tap


@dataclass
class Call:
    """The last call of a module: its first argument, what it returned, that tensor's version then, and how many calls there were."""

    given: Any
    returned: Any
    version: int
    count: int


@contextlib.contextmanager
def calls_of(net: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Call]]:
    """The calls of the modules at ``paths`` inside the block, in the order in which the last of each ended."""
    calls: dict[str, Call] = {}

    def keep(path: str, args: Any, named: Any, returned: Any) -> None:
        count = calls.pop(path).count if path in calls else 0
        given = next(iter((*args, *named.values())), None)
        version = returned._version if isinstance(returned, Tensor) and not returned.is_inference() else 0
        calls[path] = Call(given, returned, version, count + 1)

    handles = [
        net.get_submodule(path).register_forward_hook(
            lambda _, args, named, out, path=path: keep(path, args, named, out), with_kwargs=True
        )
        for path in dict.fromkeys(paths)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def as_map(
    value: Any, image: tuple[int, int], class_tokens: Sequence[int], where: str
) -> tuple[Tensor, Tensor | None, str]:
    """What a module put out as a map (B, c, h, w), its class tokens (B, P, c) or None, and the layout that it had.

    Four dimensions are NCHW or NHWC, whichever has the image's shape; three are a sequence NLC, class tokens first.

    Args:
        value: what the module put out.
        image: (height, width) of the net's input.
        class_tokens: numbers of class tokens that a sequence may have, the likeliest first.
        where: the module, for messages.

    Raises:
        NetError: for anything else.
    """
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor) or value.ndim not in (3, 4):
        raise NetError(f"{where} puts out {described(value)}, not a tensor of 3 or 4 dimensions; tap another module")
    if value.ndim == 4:
        _, a, b, c = value.shape
        if _unlike((a, b), image) < _unlike((b, c), image):
            return value.permute(0, 3, 1, 2), None, "NHWC"
        return value, None, "NCHW"
    length = value.shape[1]
    for count in class_tokens:
        if grid := _grid(length - count, image):
            tokens = value[:, :count] if count else None
            return value[:, count:].transpose(1, 2).unflatten(2, grid), tokens, "NLC"
    fitting = next((count for count in range(length) if _grid(length - count, image)), None)
    hint = f"; write class_tokens: {fitting}" if fitting is not None and length - fitting > 1 else ""
    without = f" without {class_tokens[0]} class tokens" if class_tokens[0] else ""
    raise NetError(
        f"{where} puts out {described(value)}, whose {length - class_tokens[0]} positions{without} make no grid of the shape "
        f"of the image, {image[0]} x {image[1]}{hint}"
    )


def _unlike(size: tuple[int, int], image: tuple[int, int]) -> float:
    return abs(math.log(size[0] / size[1] / (image[0] / image[1])))


def _grid(positions: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) of so many positions in the shape of the image, or None."""
    if positions < 1:
        return None
    height = max(1, round(math.sqrt(positions * image[0] / image[1])))
    width = positions // height
    fits = height * width == positions and abs(height / width - image[0] / image[1]) * width < 1
    return (height, width) if fits else None


def described(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(described, value))})"
    if isinstance(value, dict):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def check_paths(net: nn.Module, paths: Iterable[str], key: str, name: str) -> None:
    """Refuse a path that leads to no module, with the nearest ones that do."""
    known = [path for path, _ in net.named_modules(remove_duplicate=False) if path]
    for path in paths:
        if path not in known:
            beside = [other for other in known if other.rpartition(".")[0] == path.rpartition(".")[0]]
            raise NetError(f"net {name}: {key}: there is no module {path!r}; {_nearest(path, known, beside)}")


def check_taps(paths: Sequence[str], calls: Mapping[str, Call], batch: int, name: str) -> None:
    """Refuse taps that are not what they seem: a module that runs several times, whose first dimension is not the batch, or whose
    output is changed later; and modules that are not in the order of the forward.

    Args:
        paths: of modules that put out maps, all of them in ``calls``.
        calls: of a whole forward, not left yet.
        batch: number of images.
        name: of the net, for messages.
    """
    for path in paths:
        call, where = calls[path], f"net {name}: taps: module {path}"
        value = call.returned[0] if isinstance(call.returned, (tuple, list)) else call.returned
        if call.count > 1:
            raise NetError(f"{where} runs {call.count} times in the net's forward; tap one that runs once")
        if value.shape[0] != batch:
            raise NetError(f"{where} puts out {described(value)}, whose first dimension is not the batch of {batch}")
        if not value.is_inference() and value._version != call.version:
            raise NetError(f"{where} puts out what is then changed in place; tap the module that changes it")
    in_order = [path for path in calls if path in paths]
    if in_order != list(paths):
        raise NetError(
            f"net {name}: taps: each stage is another module, in the order of the net's forward: {', '.join(in_order)}"
        )


def _nearest(path: str, known: Sequence[str], beside: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(path, known, n=3, cutoff=0.6) or difflib.get_close_matches(path, beside, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return nearest(path, [other for other in known if "." not in other])


def timm_taps(net: nn.Module, taps: tuple[Tap, ...] | None, image: tuple[int, int], name: str) -> tuple[Tap, ...]:
    """The taps of a timm net: those of the suite, checked, or the usual ones.

    Raises:
        NetError: for taps that are unknown or do not increase, and for a net of fewer than four stages without taps.
    """
    info: Any = net.feature_info
    count = len(info)
    if taps is not None:
        numbers = [tap for tap in taps if isinstance(tap, int)]
        check_paths(net, [tap for tap in taps if isinstance(tap, str) and tap != "final"], "taps", name)
        if any(not 0 <= tap < count for tap in numbers):
            raise NetError(
                f"net {name}: tap {next(t for t in numbers if not 0 <= t < count)} is unknown; {name} has stages 0 to {count - 1}"
            )
        if numbers != sorted(set(numbers)) or "final" in taps[:-1] or len(set(taps)) < NUM_STAGES:
            raise NetError(f"net {name}: taps {list(taps)} must increase")
        return taps
    if count < NUM_STAGES:
        stem = _stem(net, info[0]["module"], image) if count == NUM_STAGES - 1 else None
        line = (
            f"taps: [{stem}, {', '.join(map(str, range(count)))}]" if stem else "taps: with the paths of four modules"
        )
        begins = ", which begins with its stem" if stem else ""
        raise NetError(f"net {name}: only {count} stages, four are needed; write {line}{begins}")
    if len({entry["reduction"] for entry in info}) > 1:
        return tuple(range(count - NUM_STAGES, count))
    return plain_taps(count)


@torch.no_grad()
def _stem(net: nn.Module, first: str, image: tuple[int, int]) -> str | None:
    """The path of the part that runs before the module ``first`` and puts out a map; None where there is none."""
    children = [path for path, _ in net.named_children()]
    device = next(net.parameters()).device
    training = net.training
    try:
        with calls_of(net, children) as calls:
            net.eval()(torch.zeros(1, 3, *image, device=device))
    finally:
        net.train(training)
    stem = None
    for path, call in calls.items():
        if first == path or first.startswith(f"{path}."):
            break
        with contextlib.suppress(NetError):
            as_map(call.returned, image, (0,), path)
            stem = path
    return stem


def plain_taps(depth: int) -> tuple[int, int, int, int]:
    """Blocks (from 0) at 2/12, 4/12, 10/12 and 12/12 of the depth of a plain net, kept distinct: 1, 3, 9, 11 of 12."""
    wanted = [round(depth * share / 12) for share in (2, 4, 10, 12)]
    for position in range(NUM_STAGES):  # shallow nets: move apart, first up from 1, then down from the depth
        wanted[position] = max(wanted[position], 1 if position == 0 else wanted[position - 1] + 1)
    for back in range(NUM_STAGES):
        wanted[-1 - back] = min(wanted[-1 - back], depth - back)
    first, second, third, fourth = (block - 1 for block in wanted)
    return first, second, third, fourth


@contextlib.contextmanager
def preactivations(net: nn.Module, taps: Sequence[Tap]) -> Iterator[list[Tensor]]:
    """What each tapped stage is before its activation inside the block, of ResNets and classic nets; empty for other nets.

    Copies, since activations write in place.
    """
    kept: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
        for module in _last_activations(net, taps)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _last_activations(net: nn.Module, taps: Sequence[Tap]) -> list[nn.Module]:
    """The activation that ends each tapped stage."""
    if not all(isinstance(tap, int) for tap in taps):
        return []
    if isinstance(net, ClassicNet):
        activations = net.activations()
        return [activations[int(tap)] for tap in taps] if activations else []
    if not isinstance(net, ResNet):
        return []
    stages: list[Any] = [net.get_submodule(net.feature_info[int(tap)]["module"]) for tap in taps]
    # a stage is its blocks, the stem its activation alone
    ends = [stage[-1] if isinstance(stage, nn.Sequential) else stage for stage in stages]
    return [getattr(end, "act3", getattr(end, "act2", end)) for end in ends]
