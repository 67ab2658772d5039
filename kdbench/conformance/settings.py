"""The checks of hyper-parameters: that senseless values are refused, and that every one is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from kdbench.conformance.bench import BATCH, EPOCHS, Pair, Trial, sample
from kdbench.conformance.checks import _prediction
from kdbench.conformance.findings import Wrong, one_line
from kdbench.errors import HyperparameterError
from kdbench.hyperparameters import Hyperparameter
from kdbench.method import Method
from kdbench.nets.tapped import hash_of_state
from kdbench.plugins.entry import MethodEntry

#: Epochs of the steps that two values of a hyper-parameter are compared over: warm-ups and ramps differ in one of them.
_EPOCHS_SEEN = (0, 1, EPOCHS // 2, EPOCHS - 1)


def ranges(entry: MethodEntry, cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    """Senseless values of hyper-parameters that are taken, at most one of each."""
    for name, parameter in entry.hyperparameters.items():
        for value, advice in _senseless(entry, name, parameter):
            try:
                Trial(cls, pair, {name: value})
            except HyperparameterError:
                continue
            except Exception as error:
                yield Wrong("ranges", f"{name} = {value!r} raised {one_line(error)}; {advice}", error)
            else:
                yield Wrong("ranges", f"{name} = {value!r} is taken; {advice}")
            break


def _senseless(entry: MethodEntry, name: str, parameter: Hyperparameter) -> Iterator[tuple[Any, str]]:
    """Values that must be refused, and what refuses them. Known by the name of the hyper-parameter."""
    default = parameter.default
    several = isinstance(default, tuple) and bool(default)
    if not several and not _is_number(default):
        return
    if re.search(r"(^|_)temperatures?($|_)", name):
        for value in (0.0, -1.0):
            yield ((value, *default[1:]) if several else value), _declare(parameter, "Range(above=0)")
    elif re.search(r"(^|_)weights?$", name) and any(
        other.range is not None and -1.0 not in other.range for other in entry.hyperparameters.values()
    ):
        # A negative weight may be meant, but hardly where others are refused.
        yield ((-1.0, *default[1:]) if several else -1.0), _declare(parameter, "Range(at_least=0)")
    elif name == "stages" and several:
        yield (5,), "refuse it with stage_numbers(stages=stages) in __init__ (kdbench.method)"


def _declare(parameter: Hyperparameter, bounds: str) -> str:
    return f"declare it as {parameter.name}: Annotated[{parameter.annotation}, {bounds}]"


def settings(entry: MethodEntry, cls: type[Method], pairs: Sequence[Pair]) -> Iterator[Wrong]:
    """Hyper-parameters whose value makes no difference on any of the pairs."""
    usual: dict[Pair, tuple[str, str]] = {}
    for name, parameter in entry.hyperparameters.items():
        tried: list[Any] = []
        if any(_makes_a_difference(cls, pair, parameter, usual, tried) for pair in pairs):
            continue
        shown = ", ".join(map(repr, dict.fromkeys(tried)))
        advice = f"no value of {name} but {parameter.default!r} is taken; accept another, or remove it"
        if tried:
            advice = f"{name} makes no difference ({parameter.default!r} or {shown}); use it or remove it"
        yield Wrong("settings", advice)


def _makes_a_difference(
    cls: type[Method], pair: Pair, parameter: Hyperparameter, usual: dict[Pair, tuple[str, str]], tried: list[Any]
) -> bool:
    if pair not in usual:
        trial = Trial(cls, pair)
        usual[pair] = hash_of_state(trial.method.state_dict()), _course(trial)
    for value in _others(cls, pair, parameter):
        try:
            trial = Trial(cls, pair, {parameter.name: value})
            tried.append(value)
            if hash_of_state(trial.method.state_dict()) != usual[pair][0] or _course(trial) != usual[pair][1]:
                return True
        except Wrong:
            return True  # it fails for this value: no silence
        except Exception:  # noqa: S112 - a refused value is what is looked for
            continue
    return False


def _course(trial: Trial) -> str:
    """Hash of losses, gradients, parameters, buffers and predictions over a few steps at several epochs."""
    seen: dict[str, torch.Tensor] = {}
    for number, epoch in enumerate(_EPOCHS_SEEN):
        data = sample(start=number * BATCH, epoch=epoch)
        with trial.stream.active():
            terms = trial.terms(data)
            trial.backward(terms)
        seen |= {f"{number} {name}": term.detach() for name, term in terms.items()}
        named = (*trial.student.net.named_parameters(), *trial.method.named_parameters())
        seen |= {f"{number} gradient {name}": p.grad.clone() for name, p in named if p.grad is not None}
        trial.student.zero_grad()
        trial.method.zero_grad()
        trial.step(data)
    seen |= trial.method.state_dict()
    seen["prediction"] = _prediction(trial, sample())
    return hash_of_state(seen)


def _others(cls: type[Method], pair: Pair, parameter: Hyperparameter) -> Iterator[Any]:
    """Values to try in place of the default, the likeliest to matter first; some will be refused."""
    d: Any = parameter.default
    if isinstance(d, bool):
        values: Iterable[Any] = (not d,)
    elif isinstance(d, int):
        values = (2 * d, d // 2, d + 1, d - 1, d // 4, d // 8, 3, 2, 1, 5, 8, 16, 0, 100)
    elif isinstance(d, float):
        values = (2 * d, d / 2, d + 1.0, 0.5, 10 * d, 1e3 * d, d / 100, 0.0, 1.0)
    elif isinstance(d, str):
        values = _choices(cls, pair, parameter)
    elif isinstance(d, tuple):
        scaled = tuple(2 * item if _is_number(item) else item for item in d)
        moved = [tuple(item + step if _is_number(item) else item for item in d) for step in (1, -1)]
        values = (d[:-1], d[1:], d[:1], d[-1:], scaled, *moved, d[::-1])
    else:
        values = (1.0, 0.5, 2.0, 1, 2, 4, 8, True, False, (1,), (1.0,))
    seen = [d]
    for value in values:
        if value not in seen and value != ():
            seen.append(value)
            yield value
    if "None" in parameter.annotation and d is not None:
        yield None


def _choices(cls: type[Method], pair: Pair, parameter: Hyperparameter) -> Iterator[str]:
    """The strings that may be chosen: from a Literal annotation, or from the refusal of a senseless one."""
    text = parameter.annotation
    if "Literal" not in text:
        try:
            Trial(cls, pair, {parameter.name: "no such choice"})
            text = ""
        except Exception as error:
            text = str(error).partition("must be")[2]
    yield from re.findall(r"['\"]([^'\"]*)['\"]", text)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
