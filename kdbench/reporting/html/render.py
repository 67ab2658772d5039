"""Makes a page of its template, the style and the scripts it needs: one file, without a network, that may run nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.shown import printable

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")


def render(
    template: str, scripts: Sequence[str] = (), *, command: str, hashes: Sequence[str] = (), **content: Any
) -> str:
    """A page as text. Names from results are printable and escaped wherever they stand.

    Args:
        template: a file of this folder, as ``scripts``, which run after ``shared.js``.
        command: the command line that made it, shown in the page.
        hashes: of the results behind it.
        content: what the template shows.
    """
    from markupsafe import Markup

    style, shared, *own = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "shared.js", *scripts)
    )  # fmt: skip
    parts = [shared, *(f"{{\n{text}}}" for text in own), 'document.documentElement.dataset.ready = "yes";']
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    page = _templates().get_template(template)
    return page.render(
        command=" ".join(command.split()),
        hashes=hashes,
        policy=_policy(style, script),
        style=Markup(style),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        **content,
    ).lstrip()


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    templates.filters["unbroken"] = unbroken
    return templates


def unbroken(text: str) -> str:
    """A name with hyphens (U+2011) at which no line breaks."""
    return _HYPHEN.sub("\u2011", text)


def _printable(value: Any) -> Any:
    """What the template writes; ``Markup`` is ours, or JSON whose texts are cleaned before."""
    return printable(value) if type(value) is str else value


def _policy(style: str, script: str) -> str:
    """What a page may do: run its own script, use its own style and embedded images; no network, nothing injected."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
