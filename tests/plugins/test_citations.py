"""Citations: their form is checked when a method is read, and BibTeX is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli import parser as cli
from kdbench.errors import KdbenchError
from kdbench.plugins.citations import bibtex, problem_of
from kdbench.plugins.registry import catalog

SOUND = {
    "key": "doe2024mine",
    "authors": "Doe, Jane and Roe, Richard",
    "title": "Mine",
    "venue": "CVPR",
    "year": 2024,
    "arxiv": "2401.00001",
}
METHODS = catalog()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"authors": "Doe, Jane and others"},
        {"authors": "Hu, Shell Xu and Lawrence, Neil D."},
        {"authors": "{A Group} and others"},
        {"arxiv": None},
    ],
)
def test_sound_citation_has_no_problem(changes: dict[str, Any]) -> None:
    assert problem_of({key: value for key, value in {**SOUND, **changes}.items() if value is not None}) is None
    assert problem_of({}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "doe 2024"}, "key 'doe 2024'"),
        ({"year": "2024"}, "year = '2024' is no int"),
        ({"year": True}, "year = True is no int"),
        ({"year": 24}, "year 24"),
        ({"title": None}, "has no title"),
        ({"title": ""}, "title = ''"),
        ({"author": "Doe, Jane"}, "unknown field 'author'"),
        ({"authors": "Jane Doe"}, "author 'Jane Doe'"),
        ({"authors": "Doe, Jane, Roe, Richard"}, "write 'Surname, Given"),
        ({"authors": "Doe et al."}, "author 'Doe et al.'"),
        ({"authors": "others"}, "author 'others'"),
        ({"arxiv": "arXiv:2401.00001"}, "arxiv 'arXiv:2401.00001'"),
    ],
)
def test_malformed_citation_is_refused_with_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    citation = {key: value for key, value in {**SOUND, **changes}.items() if value is not None}
    assert words in str(problem_of(citation))


def test_plugin_with_a_malformed_citation_is_reported(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin()
    path.write_text(path.read_text().replace('    """A', '    citation = {"key": "x"}\n    """A'))
    (error,) = catalog([str(path)]).errors
    assert "method 'mine': its citation has no authors" in str(error)


def test_one_key_stands_for_one_paper() -> None:
    assert bibtex([SOUND, dict(SOUND), {}]).count("@") == 1
    with pytest.raises(KdbenchError, match="two papers are cited as doe2024mine"):
        bibtex([SOUND, {**SOUND, "year": 2025}])


def test_every_method_with_a_teacher_is_cited_and_its_paper_is_the_one_of_its_docstring() -> None:
    for name, entry in METHODS.items():
        assert bool(entry.citation) is entry.uses_teacher, name
        if not entry.citation:
            continue
        paper, parts = re.sub(r"\s+", " ", entry.paper), entry.citation["title"].split(": ")
        assert any(part in paper for part in parts), name
        assert str(entry.citation["year"]) in entry.paper or "github.com" in entry.paper, name
        if "arxiv" in entry.citation:
            assert entry.citation["arxiv"] in entry.paper, name


def test_listing_prints_bibtex(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "methods", "--bibtex"]) == 0
    out = capsys.readouterr().out
    keys = re.findall(r"^@\w+\{([^,]+),$", out, re.MULTILINE)
    assert keys == sorted({entry.citation["key"] for entry in METHODS.values() if entry.citation})
    assert out.count("{") == out.count("}")
    assert "  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},\n" in out
    assert cli.main(["list", "nets", "--bibtex"]) == 2
