"""The pages of the documentation lead to each other, and build as a site."""

from __future__ import annotations

import csv
import itertools
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
]
#: Pages that exist in the site alone, see docs/build_site.py.
GENERATED = {"api.md", "changelog.md", "contributing.md"}
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them, and those written by hand."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in plain} | set(
        re.findall(r'id="([^"]+)"', text)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists() or path in GENERATED, target
        assert not anchor or file.suffix != ".md" or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_tables_and_headings_are_what_they_look_like_in_the_site_too(page: Path) -> None:
    """GitHub begins them without an empty line before, and takes two spaces for the inside of a list; the site does not."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^ {1,3}```", text, re.MULTILINE), "a code block in a list is indented by four"
    lines = CODE.sub("", text).splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"[-*] |\d+\. |#+ |\|", line) and before.strip():
            within = r"\|" if line.startswith("|") else r"[-*] |\d+\. | {2,}"
            assert re.match(rf"{within}|#+ ", before), line


def test_the_navigation_has_every_page_once() -> None:
    named = re.findall(r"^ +- (?:.*: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == {page.name for page in DOCS.glob("*.md")} | GENERATED


def test_the_figures_of_the_tutorial_are_those_that_were_measured() -> None:
    cells: dict[tuple[str, str], list[float]] = {}
    with (ROOT / "results" / "measured" / "digits-full.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pair = f"{row['teacher_display']} → {row['student_display']}"
            cells.setdefault((pair, row["method"]), []).append(float(row["top1"]))
    rows = re.findall(
        r"^\| ([\w-]+ → [\w-]+) \| ([\d*].*) \|$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 6
    for pair, figures in rows:
        own = [cells[pair, method] for method in ("scratch", "kd", "fitnet", "crd", "lfcc", "ofa")]
        expected = [f"{statistics.mean(top1):.1f} ± {statistics.stdev(top1):.1f}" for top1 in own]
        assert figures.replace("*", "").split(" | ") == expected
        best = max(range(len(own)), key=lambda i: statistics.mean(own[i]))
        assert figures.split(" | ")[best] == f"**{expected[best]}**"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "methods" / "ofa" / "index.html").read_text(encoding="utf-8")
    assert "hao2023ofa" in page
    assert "96.1 ± 0.1" in page  # Mixer-L to ResNet-S in results/measured/digits-full.csv
    assert "forward(" in page
    assert "&lt;" in (tmp_path / "site" / "methods" / "lfcc" / "index.html").read_text(
        encoding="utf-8"
    )  # an inner product
    assert "load_results" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    outside = [
        path for path in (tmp_path / "site").rglob("*.html") if "fonts.googleapis" in path.read_text(encoding="utf-8")
    ]
    assert not outside
