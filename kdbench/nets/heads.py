"""From features to logits: which layers give them, whether a head does more, and whether they are those of the net's own forward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from kdbench.errors import KdbenchError
from kdbench.method import Outputs
from kdbench.nets.models import NetError
from kdbench.nets.taps import described
from kdbench.suite.net import NetSpec

#: What logits may differ from those of the net's own forward, relative to the largest: the same sums in another order.
_ROUNDING = 1e-4


def classifier_paths(net: Any, spec: NetSpec, num_classes: int, name: str) -> list[str]:
    """Paths of the layers that give logits: of a timm net all of them, else the last layer of that width, if any.

    Raises:
        NetError: for a timm net that has no such layer.
    """
    if not spec.timm:
        widths = {path: getattr(module, "out_features", 0) for path, module in net.named_modules()}
        return [path for path, width in widths.items() if width == num_classes][-1:]
    found = net.get_classifier()
    layers = list(found) if isinstance(found, (tuple, list, nn.ModuleList)) else [found]
    layers = [layer.fc if isinstance(layer, ClassifierHead) else layer for layer in layers]
    paths = {id(module): path for path, module in net.named_modules()}
    if not layers or any(id(layer) not in paths for layer in layers):
        raise NetError(f"net {name}: the classifier of {spec.timm} is {described(found)}, no module of it")
    return [paths[id(layer)] for layer in layers]


class LinearConvolution:
    """A classifier that is a convolution of 1 x 1, as the linear layer that it is: ``weight`` (C, d), ``bias``."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.weight, self.bias = layer.weight.flatten(1), layer.bias

    def __call__(self, value: Tensor) -> Tensor:
        return F.linear(value, self.weight, self.bias)

    def parameters(self) -> Iterator[Tensor]:
        return (value for value in (self.weight, self.bias) if value is not None)


class _Operations(TorchDispatchMode):
    """The names of the operations inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def same_memory(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.untyped_storage()._cdata == b.untyped_storage()._cdata


@torch.no_grad()
def head_has_more(net: Any, classifier: nn.Module, final: Any) -> bool:
    """Whether the head of a timm net is more than its classifier after the pooling, in training or in evaluation.

    Told from the operations of both, on the device "meta": VOLO adds a second classifier, some nets drop out between the two. Who
    counts operations meanwhile does not count these.

    Args:
        final: what ``forward_features`` returned for an image.
    """

    def taken_apart(final: Any) -> Tensor:
        return classifier(net.forward_head(final, pre_logits=True))

    training, more = net.training, False
    # BatchNorm in training wants more than one image
    final = tree_map_only(Tensor, lambda value: value.expand(2, *value.shape[1:]), final)
    with _disable_current_modes():
        for mode in (True, False):
            net.train(mode)
            with _Operations() as own:
                net.forward_head(final)
            with _Operations() as ours:
                try:
                    taken_apart(final)
                except (RuntimeError, TypeError):  # a convolution, which wants a map
                    more = True
            more = more or own.names != ours.names
    net.train(training)
    return more


#: Nets whose logits were compared in this process.
_compared: set[str] = set()


@torch.no_grad()
def check_own_forward(
    net: Any,
    run: Callable[[Tensor, Collection[str]], Outputs],
    spec: NetSpec,
    num_classes: int,
    size: tuple[int, int],
    name: str,
) -> None:
    """Compare the logits that ``run`` gives with those of a timm net's own forward: in evaluation, on a random image.

    Its classifiers are random meanwhile, since those that start at zero would hide any difference. Once for each net in a process,
    and not on the device "meta".

    Raises:
        NetError: where they differ.
    """
    key = f"{spec.model_dump_json()} {num_classes}"
    if key in _compared or next(net.parameters()).device.type == "meta":
        return
    heads = [
        parameter
        for module in net.modules()
        if num_classes in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
        for parameter in module.parameters(recurse=False)
    ]
    kept = [parameter.clone() for parameter in heads]
    random = torch.Generator().manual_seed(0)
    training = net.training
    with torch.random.fork_rng(devices=[]):
        try:
            net.eval()
            for parameter in heads:
                parameter.normal_(generator=random)
            inputs = torch.randn(1, 3, *size, generator=random)
            own = net(inputs)
            found = [run(inputs, needs).logits for needs in (("logits",), ("logits", "stages"))]
        except KdbenchError:
            raise
        except Exception as error:
            raise NetError(f"net {name}: {spec.model} cannot be run ({type(error).__name__}: {error})") from error
        finally:
            for parameter, value in zip(heads, kept, strict=True):
                parameter.copy_(value)
            net.train(training)  # which also empties what some nets cache in evaluation
    largest = float(own.abs().max())
    for logits in found:
        difference = float((logits - own).abs().max())
        if not difference <= _ROUNDING * max(largest, 1.0):
            raise NetError(
                f"net {name}: the logits of {spec.model} run through its stages differ from those of its own forward by "
                f"{difference:.2g} (the largest is {largest:.2g}): its forward does more than its features and its head"
            )
    _compared.add(key)
