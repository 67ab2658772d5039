"""The static site: a first page with every suite, a page for each method, nothing outside the folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from kdbench.cli.parser import main
from kdbench.reporting.html import page as page_module
from kdbench.reporting.html.methods import standing_facts
from kdbench.reporting.html.render import unbroken
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.plots import draw
from tests.reporting import factory
from tests.reporting.test_page import HOSTILE, Page

pytestmark = pytest.mark.xdist_group("site")  # one process makes the site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two suites, one of them with a method that is shown under a hostile name."""
    root = tmp_path_factory.mktemp("results")
    factory.small().to_csv(root / "one.csv", index=False)
    odd = factory.frame({"swin_tiny--resnet18": {"odd": [81.0, 82.0]}}, method_display=HOSTILE)
    (root / "below").mkdir()
    pd.concat([factory.small(), odd]).assign(suite="second-suite").to_csv(root / "below" / "two.csv", index=False)
    (root / "other.csv").write_text("a,b\n1,2\n")
    (root / "other.json").write_text("{}")
    patch = pytest.MonkeyPatch()
    patch.setattr(draw, "PLOTS", {})
    patch.setattr(page_module, "board_figure", lambda board: Figure(figsize=(1, 1)))
    try:
        assert main(["site", str(root), "--to", str(root / "site")]) == 0
        (root / "site" / "methods" / "gone.html").write_text("")
        assert main(["site", str(root), "--to", str(root / "site")]) == 0  # replaces the first
    finally:
        patch.undo()
    return root / "site"


def test_pages_are_whole_and_lead_only_to_each_other(site: Path) -> None:
    files = sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file())
    names = ["dkd", "kd", "odd", "ofa", "scratch", "tas"]
    assert files == ["index.html", *(f"methods/{name}.html" for name in names)]
    pages = {path: Page((site / path).read_text()) for path in files}
    ids = {path: {a["id"] for _, a in page.elements if a.get("id")} for path, page in pages.items()}
    for path, page in pages.items():
        assert (page.wrong, page.stack) == ([], [])
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        for tag in ("a", "img", "link", "script"):
            for address in (str(a.get("href") or a.get("src") or "") for a in page.of(tag)):
                if address.startswith("data:") or not address:
                    continue
                file, _, anchor = address.partition("#")
                to = (
                    (site / path).parent.joinpath(file).resolve().relative_to(site.resolve()).as_posix()
                    if file
                    else path
                )
                assert to in files
                assert not anchor or anchor in ids[to], address
        policy = next(str(a["content"]) for a in page.of("meta") if a.get("http-equiv"))
        assert policy.startswith("default-src 'none'; img-src data:;")


def test_a_methods_page_shows_every_pair_and_seed(site: Path) -> None:
    page = Page((site / "methods" / "ofa.html").read_text())
    strips = [a for tag, a in page.elements if tag == "svg"]
    assert len(strips) == 2 * 3  # suites and pairs
    assert strips[1]["aria-label"] == "seed 0: +2.00, seed 1: +3.00"
    assert len([tag for tag, _ in page.elements if tag == "circle"]) == 2 * 3 * 2
    for part in ("arXiv", "reference", "gain over KD", "+1.50", "win/tie/loss", "Published figures"):
        assert part in page.words.replace("\u2011", "-")


def test_a_small_p_is_never_printed_as_zero() -> None:
    board = build_leaderboard(factory.small())
    standing = next(one for one in board.standings if one.method == "ofa")
    facts = dict(standing_facts(board, replace(standing, p_holm=1e-5, smallest_p=1e-6)))
    assert facts["p (Holm)"] == "<0.001"


def test_the_first_page_holds_what_ranks_are_computed_from(site: Path) -> None:
    page = Page((site / "index.html").read_text())
    boards = json.loads(page.scripts["boards-data"])
    assert [board["suite"] for board in boards] == ["second-suite", "toy"]
    own = boards[1]
    ofa = [method["name"] for method in own["methods"]].index("ofa")
    vit = [pair["name"] for pair in own["pairs"]].index("convnext_tiny--deit_tiny")
    assert [cell[2:] for cell in own["cells"] if cell[:2] == [vit, ofa]] == [[0, 74.0, 2.0, 4.0], [1, 75.0, 3.0, 5.0]]
    assert (own["reference"], own["methods"][ofa]["page"]) == ("kd", "methods/ofa.html")


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factory.small().to_csv(tmp_path / "one.csv", index=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("my own")
    assert main(["site", str(tmp_path), "--to", str(tmp_path / "mine")]) == 2
    assert "holds something that is no site" in capsys.readouterr().err
    assert (tmp_path / "mine" / "index.html").read_text() == "my own"
    assert main(["site", str(tmp_path / "mine"), "--to", str(tmp_path / "new")]) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "shown"), [("SD-DKD", "SD\u2011DKD"), ("-1.5", "-1.5"), ("a - b", "a - b"), ("top-1", "top\u20111")]
)
def test_names_do_not_break_at_hyphens_and_figures_keep_their_sign(name: str, shown: str) -> None:
    assert unbroken(name) == shown
    assert not re.search("\u2011", unbroken("[-0.5, -0.1]"))
