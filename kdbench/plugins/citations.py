"""The papers behind methods: the form of a ``citation``, and BibTeX. Works without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kdbench.errors import KdbenchError, nearest

_FIELDS: dict[str, type] = {"key": str, "authors": str, "title": str, "venue": str, "year": int, "arxiv": str}
_OPTIONAL = frozenset({"arxiv"})
#: "Surname, Given", or a name in braces that BibTeX leaves as it is.
_AUTHOR = re.compile(r"[^,{}]+, [^,{}]+|\{[^{}]+\}")


def problem_of(citation: Mapping[str, Any]) -> str | None:
    """What is wrong with a citation, in one sentence; None for a sound one or an empty one (no paper)."""
    if not citation:
        return None
    for name, value in citation.items():
        if name not in _FIELDS:
            return f"unknown field {name!r} in its citation; {nearest(name, _FIELDS)}"
        if type(value) is not _FIELDS[name] or value == "":
            return f"citation {name} = {value!r} is no {_FIELDS[name].__name__}"
    missing = [name for name in _FIELDS if name not in citation and name not in _OPTIONAL]
    if missing:
        return f"its citation has no {missing[0]}"
    if not re.fullmatch(r"[A-Za-z0-9_:-]+", citation["key"]):
        return f"citation key {citation['key']!r}: letters, digits, '_', ':' and '-' only"
    if not 1900 < citation["year"] < 2200:
        return f"citation year {citation['year']} is none"
    *first, last = citation["authors"].split(" and ")
    for author in [*first, *([] if first and last == "others" else [last])]:
        if not _AUTHOR.fullmatch(author):
            return f"citation author {author!r}: write 'Surname, Given and Surname, Given', at the end 'and others'"
    if not re.fullmatch(r"\d{4}\.\d{4,5}", citation.get("arxiv", "0000.00000")):
        return f"citation arxiv {citation['arxiv']!r} is no number like 1503.02531"
    return None


def bibtex(citations: Iterable[Mapping[str, Any]]) -> str:
    """BibTeX entries, each key once, in alphabetical order.

    Raises:
        KdbenchError: where two citations have one key and differ.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for citation in citations:
        if citation and found.setdefault(citation["key"], citation) != citation:
            raise KdbenchError(f"two papers are cited as {citation['key']}")
    return "\n\n".join(_entry(found[key]) for key in sorted(found))


def _entry(citation: Mapping[str, Any]) -> str:
    bare = citation["venue"].startswith(("arXiv", "GitHub"))
    fields = {
        "author": citation["authors"],
        "title": f"{{{_escaped(citation['title'])}}}",
        "howpublished" if bare else "booktitle": _escaped(citation["venue"]),
    }
    if "year" in citation:
        fields["year"] = citation["year"]
    if "arxiv" in citation:
        fields |= {"eprint": citation["arxiv"], "archivePrefix": "arXiv"}
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{'misc' if bare else 'inproceedings'}{{{citation['key']},\n{lines}\n}}"


def _escaped(text: str) -> str:
    """What LaTeX would take for markup in a title."""
    return re.sub(r"(?<!\\)([&%#_$])", r"\\\1", text)
