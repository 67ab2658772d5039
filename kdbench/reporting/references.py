"""What published figures are cited as: the paper where its entry is known, else the repository that they were read from."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdbench.plugins.registry import catalog

if TYPE_CHECKING:
    from kdbench.reporting.frame import Results

#: Owner and name of the repository in the column ``source``.
_REPOSITORY = re.compile(r"github(?:\.com/|:)([\w.-]+)/([\w.-]+)")


def find_published() -> Path | None:
    """The folder of published figures: of an installed wheel, else of the project that this file belongs to; None without both."""
    package = Path(__file__).resolve().parents[1]
    folders = package / "published", package.parent / "results" / "published"
    return next((folder for folder in folders if folder.is_dir()), None)


def citation_of(paper: str, arxiv: str, source: str) -> Mapping[str, Any]:
    """The citation of a published figure, in the form that methods have theirs; empty where nothing can be cited.

    Args:
        paper, arxiv, source: columns of the published figures.
    """
    known = _papers()
    if found := known.get(arxiv) or known.get(paper):
        return found
    repository = _REPOSITORY.search(source)
    if repository is None:
        return {}
    owner, name = repository[1], repository[2].removesuffix(".git")
    key = re.sub(r"[^A-Za-z0-9]+", "-", f"{owner}-{name}").lower()
    return {"key": key, "authors": f"{{{owner}}}", "title": name, "venue": f"GitHub, {owner}/{name}"}


def citations_of(
    methods: Iterable[str], results: Results, claims: Iterable[Mapping[str, Any]] = ()
) -> tuple[Mapping[str, Any], ...]:
    """What methods, the parents of variants among them, and published figures are cited as, each once."""
    known = _methods()
    parents = dict(zip(results.cells["method"], results.cells["variant_of"], strict=True))
    found = [known.get(parents.get(name) or name, {}) for name in methods]
    found += [citation_of(*reference) for claim in claims for reference in claim["references"]]
    return tuple({citation["key"]: citation for citation in found if citation}.values())


@functools.cache
def _methods() -> dict[str, Mapping[str, Any]]:
    """Citations of kdbench's own methods by name."""
    return {name: entry.citation for name, entry in catalog().items()}


@functools.cache
def _papers() -> dict[str, Mapping[str, Any]]:
    """Citations of kdbench's own methods, and of ``papers.yaml``, by arXiv number or name."""
    folder = find_published()
    path = folder / "papers.yaml" if folder else None
    listed = yaml.safe_load(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    return {**listed, **{citation["arxiv"]: citation for citation in _methods().values() if "arxiv" in citation}}
