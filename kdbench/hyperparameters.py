"""A hyper-parameter as a method's source declares it, and the check of a value against its annotation. Works without torch."""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kdbench.errors import HyperparameterError


@dataclass(frozen=True, kw_only=True)
class Range:
    """Valid values of a number: ``temperature: Annotated[float, Range(above=0, search=(0.5, 8), scale="log")] = 1.0``.

    A value outside is refused before anything trains. In a tuple each element is checked.

    Attributes:
        above, at_least: lower bound, exclusive or inclusive.
        below, at_most: upper bound, likewise.
        search: the interval that a search of hyper-parameters draws from; None: not searched unless it is asked for.
        scale: how it is drawn, uniformly or log-uniformly.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    search: tuple[float, float] | None = None
    scale: Literal["linear", "log"] = "linear"

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"in [{self.at_least:g}, {self.at_most:g}]"
        bounds = {
            "above {:g}": self.above,
            "{:g} or more": self.at_least,
            "below {:g}": self.below,
            "{:g} or less": self.at_most,
        }
        return " and ".join(text.format(bound) for text, bound in bounds.items() if bound is not None) or "finite"


@dataclass(frozen=True)
class Hyperparameter:
    """A keyword-only argument of a method's ``__init__``: its default, its annotation as written, its range if it has one."""

    name: str
    default: Any
    annotation: str
    range: Range | None = None

    @classmethod
    def read(cls, name: str, default: Any, annotation: str) -> Hyperparameter:
        """Split ``Annotated[TYPE, Range(...)]`` into type and range.

        Raises:
            ValueError: for a range whose bounds are no literals given by name.
        """
        node = ast.parse(annotation, mode="eval").body
        if (
            not isinstance(node, ast.Subscript)
            or getattr(node.value, "id", getattr(node.value, "attr", "")) != "Annotated"
        ):
            return cls(name, default, annotation)
        kind, *extras = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for extra in extras:
            if isinstance(extra, ast.Call) and getattr(extra.func, "id", getattr(extra.func, "attr", "")) == "Range":
                return cls(name, default, ast.unparse(kind), _read_range(name, extra))
        return cls(name, default, ast.unparse(kind))

    @classmethod
    def of(cls, argument: inspect.Parameter) -> Hyperparameter:
        """That of an argument whose function was imported; see ``read``."""
        hint = argument.annotation
        if hint is argument.empty:
            hint = type(argument.default)
        if isinstance(hint, type) and not hasattr(hint, "__origin__"):
            hint = hint.__name__
        return cls.read(argument.name, argument.default, str(hint))

    def check(self, value: Any, where: str) -> Any:
        """Return the value in the annotated type.

        Raises:
            HyperparameterError: if it has another type.
        """
        converted, ok = _coerce(value, ast.parse(self.annotation, mode="eval").body)
        if not ok:
            raise HyperparameterError(
                f"{where}.{self.name} = {value!r}: expected {self.annotation}, got {type(value).__name__}"
            )
        if self.range is not None:
            for number in converted if isinstance(converted, tuple) else (converted,):
                if isinstance(number, (int, float)) and number not in self.range:
                    finite = "" if math.isfinite(number) else ", and finite"
                    raise HyperparameterError(f"{where}.{self.name} = {value!r}: must be {self.range}{finite}")
        return converted


def _read_range(name: str, call: ast.Call) -> Range:
    try:
        if call.args:
            raise ValueError("bounds without names")
        bounds = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        return Range(**bounds)
    except (ValueError, TypeError):
        raise ValueError(f"{name}: write {ast.unparse(call)} with literals, as Range(at_least=0)") from None


def _coerce(value: Any, node: ast.expr) -> tuple[Any, bool]:
    """Convert ``value`` to an annotation such as ``float``, ``tuple[float, ...]`` or ``float | None``; (value, whether it fits)."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        for side in (node.left, node.right):
            converted, ok = _coerce(value, side)
            if ok:
                return converted, True
        return value, False
    if isinstance(node, ast.Constant):
        return value, value is None and node.value is None
    if isinstance(node, ast.Subscript):
        return _coerce_container(value, node)
    name = getattr(node, "id", getattr(node, "attr", ""))
    if name == "float":
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (float(value) if ok else value), ok
    if name == "int":
        return value, isinstance(value, int) and not isinstance(value, bool)
    if name in ("tuple", "list", "Sequence"):
        return (tuple(value) if isinstance(value, (list, tuple)) else value), isinstance(value, (list, tuple))
    expected = {"str": str, "bool": bool, "dict": dict}.get(name)
    return value, expected is None or isinstance(value, expected)


def _coerce_container(value: Any, node: ast.Subscript) -> tuple[Any, bool]:
    outer = getattr(node.value, "id", getattr(node.value, "attr", ""))
    inner = node.slice
    if outer == "Literal":
        choices = ast.literal_eval(inner)
        return value, value in (choices if isinstance(choices, tuple) else (choices,))
    if outer == "Optional":
        return (None, True) if value is None else _coerce(value, inner)
    if outer not in ("tuple", "list", "Sequence") or not isinstance(value, (list, tuple)):
        return value, False
    if isinstance(inner, ast.Tuple):
        kinds = list(inner.elts)
        if len(kinds) == 2 and isinstance(kinds[1], ast.Constant) and kinds[1].value is ...:
            kinds = [kinds[0]] * len(value)
    else:
        kinds = [inner] * len(value)
    if len(kinds) != len(value):
        return value, False
    converted = [_coerce(item, kind) for item, kind in zip(value, kinds, strict=True)]
    return tuple(item for item, _ in converted), all(ok for _, ok in converted)


def checked_init(init: Callable[..., None]) -> Callable[..., None]:
    """``init`` with its keyword-only arguments checked, and brought to their annotated types, before it runs."""
    declared = {
        argument.name: Hyperparameter.of(argument)
        for argument in inspect.signature(init).parameters.values()
        if argument.kind is argument.KEYWORD_ONLY
    }

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        name = getattr(self, "name", type(self).__name__)
        known = {key: declared[key].check(value, name) for key, value in kwargs.items() if key in declared}
        init(self, *args, **{**kwargs, **known})

    return checked
