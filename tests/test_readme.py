"""What the README and the guides say can be typed, can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kdbench.cli.parser import cli
from kdbench.conformance import check_method
from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line in a code block, or row of a table, that begins with a command of kdbench."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in (
            *(block for _, block in FENCE.findall(text)),
            *re.findall(r"^\| `(kdbench [^`]*)` \|", text, re.MULTILINE),
        ):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                command = re.split(r"\s{2,}|\s#", line.strip())[0].removeprefix(".venv/bin/")
                if command.startswith("kdbench "):
                    found.append((page.name, command))
    return found


def test_the_pages_hold_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_of_the_pages_parses(page: str, command: str) -> None:
    words = [re.sub(r"^(SUITE|METHOD|NAME)$", "digits", word) for word in shlex.split(command)[1:]]
    if words[0].startswith("-"):
        return
    verb = cli.get_command(None, words[0])
    assert verb is not None
    verb.make_context(words[0], words[1:])


def test_the_readmes_method_passes_the_checks(tmp_path: Path) -> None:
    (code,) = [
        block
        for language, block in FENCE.findall((ROOT / "README.md").read_text())
        if language == "python" and "@register" in block
    ]
    plugin = tmp_path / "mine.py"
    plugin.write_text(code)
    try:
        assert check_method(catalog([str(plugin)])["mine"]) == []
    finally:
        METHODS.pop("mine", None)


def test_the_readme_opens_with_a_picture_and_two_commands_of_one_line() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = FENCE.findall(text)[:2]
    assert text.index("![") < text.index("```")
    for _, block in blocks:
        (line,) = block.strip().splitlines()
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install")
