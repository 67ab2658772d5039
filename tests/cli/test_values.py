"""Values on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from kdbench.cli.values import parse_set, parse_variants
from kdbench.errors import KdbenchError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4), ("1.5", 1.5), ("1e-3", 1e-3), ("true", True), ("null", None), ("[1, 2]", [1, 2]), ("cosine", "cosine"),
    ],
)  # fmt: skip
def test_values_of_set_are_yaml(text: str, value: Any) -> None:
    assert parse_set([f"ofa.eps={text}"]) == {"ofa": {"eps": value}}


def test_variant_is_a_method_and_values_in_yaml() -> None:
    assert parse_variants(["w=ofa", "v=lfcc,scales=[1, 2],dim = 32,contrast_weight=1e-1"]) == {
        "w": {"method": "ofa", "set": {}},
        "v": {"method": "lfcc", "set": {"scales": [1, 2], "dim": 32, "contrast_weight": 0.1}},
    }


@pytest.mark.parametrize("text", ["", "w", "w=", "=kd", "w=kd,temperature=", "w=kd,temperature=[", "w=kd,=2"])
def test_variant_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(KdbenchError, match="--variant"):
        parse_variants([text])


def test_set_may_be_repeated_for_other_names() -> None:
    assert parse_set(["a.x=1", "a.y=2", "b.x=3"]) == {"a": {"x": 1, "y": 2}, "b": {"x": 3}}
    assert parse_set(["a.x=k=v"]) == {"a": {"x": "k=v"}}


def test_a_name_that_is_set_twice_is_refused() -> None:
    with pytest.raises(KdbenchError, match=r"--set a\.x is given twice"):
        parse_set(["a.x=1", "a.y=2", "a.x=1"])
    with pytest.raises(KdbenchError, match="gives one name twice"):
        parse_variants(["w=kd,temperature=2,temperature=3"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a.b",
        "a=1",
        ".b=1",
        "a.=1",
        "a.b=[",
        "a.b=2021-99-99",
        "a.b=!!python/name:os.system",
        "a.b=" + "[" * 5000,
    ],
)
def test_set_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(KdbenchError, match="--set"):
        parse_set([text])
