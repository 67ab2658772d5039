"""A hyper-parameter as a method's source declares it, and the check of a value against its annotation. Works without torch."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from kdbench.errors import HyperparameterError


@dataclass(frozen=True)
class Hyperparameter:
    """A keyword-only argument of a method's ``__init__``: its default and its annotation as written."""

    name: str
    default: Any
    annotation: str

    def check(self, value: Any, where: str) -> Any:
        """Return the value in the annotated type.

        Raises:
            HyperparameterError: if it has another type.
        """
        converted, ok = _coerce(value, self.annotation)
        if not ok:
            raise HyperparameterError(
                f"{where}.{self.name} = {value!r}: expected {self.annotation}, got {type(value).__name__}"
            )
        return converted


def _coerce(value: Any, annotation: str) -> tuple[Any, bool]:
    """Convert ``value`` to an annotation such as ``float``, ``tuple[float, ...]`` or ``float | None``; (value, whether it fits)."""
    return _coerce_node(value, ast.parse(annotation, mode="eval").body)


def _coerce_node(value: Any, node: ast.expr) -> tuple[Any, bool]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        for side in (node.left, node.right):
            converted, ok = _coerce_node(value, side)
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
        return (None, True) if value is None else _coerce_node(value, inner)
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
    converted = [_coerce_node(item, kind) for item, kind in zip(value, kinds, strict=True)]
    return tuple(item for item, _ in converted), all(ok for _, ok in converted)
