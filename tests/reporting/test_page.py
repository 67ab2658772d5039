"""The report as a file: whole, without a network, safe with hostile names, small enough with ten thousand cells."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from kdbench.errors import KdbenchError
from kdbench.plugins.metrics import METRICS
from kdbench.reporting.frame import fill_frame
from kdbench.reporting.html import page as page_module
from kdbench.reporting.html import tables
from kdbench.reporting.html.classes import CellClasses
from kdbench.reporting.html.data import BLOCK, blocks_of_files, cells_data, safe_json
from kdbench.reporting.html.page import report_html, write_report
from kdbench.reporting.html.tables import Links
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.plots import draw
from kdbench.store.classnames import write_classes
from kdbench.store.reading import Outcomes
from tests.reporting import factory
from tests.reporting.stored import write_store

P1, P2 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny"
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Elements in order as (tag, attributes), text by element, and what is nested wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: dict[str, str] = {}
        self.stack: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.texts.append((self.stack[-1], data))
            if self.stack[-1] == "script":
                self.scripts[self.elements[-1][1].get("id") or "code"] = data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))


@pytest.fixture(scope="module", autouse=True)
def _quick_plots(request: pytest.FixtureRequest) -> Any:
    """Plots have tests of their own: here one of them is enough."""
    patch = pytest.MonkeyPatch()
    patch.setattr(draw, "PLOTS", {"ranks": draw.PLOTS["ranks"]})
    patch.setattr(page_module, "board_figure", lambda board: Figure(figsize=(1, 1)))
    yield
    patch.undo()


def unpacked(page: Page, number: int = 0) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(base64.b64decode(page.scripts[f"details-{number}"])))


def test_the_report_is_one_well_formed_file_that_needs_no_other(tmp_path: Path) -> None:
    frame = write_store(tmp_path / "runs", factory.small())
    path = write_report(frame, tmp_path / "runs", tmp_path / "new" / "report.html", "kdbench report toy")
    text = path.read_text()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert (page.wrong, page.stack) == ([], [])
    addresses = [a.get("src") or a.get("href") or "" for tag in ("img", "link", "script", "a") for a in page.of(tag)]
    assert all(address.startswith(("data:", "#", "")) and "://" not in address for address in addresses)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for address in addresses:
        if address.startswith("#") and "?" not in address and not address.startswith("#cell-"):
            assert address[1:] in ids


def test_only_the_pages_own_script_and_style_may_run(tmp_path: Path) -> None:
    text = report_html(factory.small(), tmp_path)
    policy = next(a["content"] for a in Page(text).of("meta") if a.get("http-equiv"))
    for tag in ("style", "script"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        assert base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode() in str(policy)
    assert "default-src 'none'" in str(policy)
    assert not re.search(r"\son[a-z]+=", text.split("<script")[0])


def test_numbers_lead_to_their_cells_and_cells_hold_config_curve_and_log(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.small())
    page = Page(report_html(frame, tmp_path))
    data = json.loads(page.scripts["cells-data"])
    columns = {column["name"]: column for column in data["columns"]}

    def of(number: int, name: str) -> Any:
        column = columns[name]
        value = column["values"][number]
        return column["words"][value] if "words" in column else value

    assert data["count"] == 30
    links = [(a["href"], text) for (tag, a), (_, text) in _links(page)]
    numbers = [(int(href[6:]), text) for href, text in links if href and re.fullmatch(r"#cell-\d+", href)]
    ofa = next(number for number, text in numbers if text == "87.0 ± 1.4")
    assert [of(ofa, name) for name in ("method", "pair", "seed", "top1")] == ["OFA", "Swin-T → ResNet18", 0, 86.0]
    found = unpacked(page)[ofa]
    assert found["config"]["method"] == {"name": "ofa", "hyperparameters": {"temperature": 4.0}}
    assert found["history"]["epoch"] == [1, 2, 3, 4, 5]
    assert found["log"].endswith("epoch 5/5")
    assert found["result"]["metrics"]["last"]["top1"] == 86.0


def _links(page: Page) -> list[tuple[tuple[str, dict[str, str | None]], tuple[str, str]]]:
    anchors = [element for element in page.elements if element[0] == "a"]
    texts = [text for text in page.texts if text[0] == "a"]
    return list(zip(anchors, texts, strict=True))


def test_summary_says_leader_certainty_harm_and_seeds(tmp_path: Path) -> None:
    words = Page(report_html(factory.small(), tmp_path)).words
    for part in (
        "30 of 30 planned cells done",
        "OFA has the highest mean gain over KD: +1.50 points over 3 pairs",
        "With 3 pairs no difference from KD can become significant",
        "Worse than training from scratch on some pairs: FBT (1 of 3)",
        "Two seeds: the t interval",
        "No cell failed and none was skipped.",
    ):
        assert part in words


def test_the_selected_epoch_is_shown_and_said(tmp_path: Path) -> None:
    frame = factory.small()
    last, best = (Page(report_html(frame, tmp_path, select=select)).words for select in ("last", "best"))
    rule = "best test epoch (chosen by top-1 on the test split itself"
    assert rule in best
    assert rule not in last
    assert re.findall(r"84\.\d+", last) != re.findall(r"84\.\d+", best)


def test_failures_and_skips_stand_with_reasons_and_environment_with_counts(tmp_path: Path) -> None:
    frame = pd.concat(
        [
            factory.frame({P1: {"kd": 80.0, "ofa": 81.0}}),
            factory.frame({P1: {"crd": None}}, state="failed", reason="loss became NaN"),
            factory.frame({P1: {"tas": None}, P2: {"tas": None}}, state="skipped", reason="no tokens"),
        ]
    )
    page = Page(report_html(write_store(tmp_path, frame), tmp_path))
    for part in ("loss became NaN", "no tokens", "Swin-T → ResNet18, ConvNeXt-T → DeiT-T", "torch", "2.4"):
        assert part in page.words


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\u2028"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    frame = factory.frame({P1: {"scratch": 70.0, "kd": 80.0, "ofa": 81.0}}).assign(
        method_display=["From scratch", "KD", HOSTILE],
        teacher_display=HOSTILE,
        dataset_title=HOSTILE,
        device=HOSTILE,
        commit=HOSTILE,
        hyperparameters=HOSTILE,
    )
    failed = factory.frame({P1: {"crd": None}}, state="failed", reason=HOSTILE)
    stored = write_store(tmp_path, pd.concat([frame, failed]), log=HOSTILE * 3)
    text = report_html(stored, tmp_path, command=f"kdbench report {HOSTILE}")
    page = Page(text)
    assert (page.wrong, page.stack) == ([], [])
    blocks = {"boards-data", "cells-data", "code", "details-0"}
    assert set(page.scripts) == blocks
    assert len(page.of("script")) == len(blocks)
    assert all(str(image["src"]).startswith("data:image/") for image in page.of("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert HOSTILE.strip() in page.words.replace("  ", " ") or "{{7*7}}" in page.words
    assert "49" not in "".join(t for tag, t in page.texts if tag == "h1")
    data = json.loads(page.scripts["cells-data"])
    assert HOSTILE.replace("\u2028", " ") in next(c for c in data["columns"] if c["name"] == "reason")["words"]
    assert unpacked(page)[0]["log"].startswith("</script>")


@pytest.mark.parametrize("content", ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", "ü→"])
def test_json_in_a_script_cannot_end_it_and_reads_back(content: str) -> None:
    text = safe_json({"a": [content]})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"a": [re.sub("[\u2028\u2029]", " ", content)]}


def test_figures_that_json_lacks_become_null() -> None:
    cells = fill_frame(factory.frame({P1: {"kd": [80.0, None]}})).assign(method_title="KD", pair_title="one")
    columns = {column["name"]: column for column in cells_data(cells, METRICS.values())["columns"]}
    assert [columns[name]["values"] for name in ("top1", "best_epoch", "gmacs")] == [
        [80.0, None],
        [28, None],
        [None] * 2,
    ]


def test_several_protocols_become_sections_with_links_to_their_own_cells(tmp_path: Path) -> None:
    both = pd.concat([factory.small(), factory.small().assign(protocol="long")], ignore_index=True)
    page = Page(report_html(both, tmp_path))
    assert {"part-0-leaderboard", "part-1-leaderboard"} <= {a.get("id") for a in page.of("table")}
    data = json.loads(page.scripts["cells-data"])
    protocol = next(c for c in data["columns"] if c["name"] == "protocol")
    second = [str(a["href"]) for a in page.of("a") if str(a.get("href")).startswith("#cell-")]
    names = [protocol["words"][protocol["values"][int(href[6:])]] for href in second]
    assert names == sorted(names)
    assert set(names) == {"long", "short"}


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        factory.frame({P1: {"kd": None}}),
        factory.frame({P1: {"kd": 80.0}}),
        factory.frame({P1: {"ofa": 80.0, "dkd": 81.0}}),
        factory.frame({P1: {"scratch": 80.0, "ofa": 81.0}}).drop(columns="path"),
    ],
    ids=["nothing", "planned", "only kd", "no baseline", "no paths"],
)
def test_stores_with_little_in_them_give_a_page(tmp_path: Path, frame: pd.DataFrame) -> None:
    page = Page(report_html(frame, tmp_path))
    assert (page.wrong, page.stack) == ([], [])
    assert "cells-data" in page.scripts


def test_damaged_files_of_a_cell_cost_only_that_cell(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.frame({P1: {"kd": 80.0, "ofa": 81.0}}))
    for name in ("config.json", "result.json", "history.csv", "predictions.npz", "log.txt"):
        (tmp_path / frame["path"][0] / name).write_bytes(b"\xff\x00{")
    kd, ofa = unpacked(Page(report_html(frame, tmp_path)))
    assert "config" not in kd
    assert "config" in ofa


def test_a_file_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KdbenchError, match="cannot be written"):
        write_report(factory.small(), tmp_path, tmp_path / "file" / "report.html")


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.small())
    assert report_html(frame, tmp_path) == report_html(frame.sample(frac=1, random_state=1), tmp_path)


def test_long_histories_keep_their_last_epoch(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.frame({P1: {"kd": 80.0}}), epochs=901)
    kept = unpacked(Page(report_html(frame, tmp_path)))[0]["history"]["epoch"]
    assert kept[-1] == 901
    assert len(kept) <= 200


@pytest.mark.slow
def test_ten_thousand_cells_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    methods = {f"m{i}": [50.0 + i % 7, 51.0, 52.0, 53.0, 54.0] for i in range(38)}
    frame = factory.frame({f"t{i % 5}--s{i}": {"scratch": [40.0] * 5, "kd": [50.0] * 5, **methods} for i in range(50)})
    assert len(frame) == 10_000
    text = report_html(frame, tmp_path)
    assert len(text) < 6_000_000
    page = Page(text)
    assert json.loads(page.scripts["cells-data"])["count"] == 10_000
    assert len([name for name in page.scripts if name.startswith("details-")]) == 10_000 / BLOCK
    assert len(page.of("tr")) < 500  # rows of the cells are drawn by the browser, a hundred at a time


def test_comparisons_that_are_left_out_are_counted(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.small())
    board = build_leaderboard(frame)
    links = Links({}, {name: row["title"] for name, row in board.results.method_info.items()})
    whole, part = (tables.paired_table(board, Outcomes(tmp_path), links, "paired", limit) for limit in (600, 6))
    assert whole is not None
    assert part is not None
    assert (len(whole.rows), whole.intro) == (12, "")
    assert part.intro.startswith("Only 6 of 12 comparisons are shown, those of the first 2 of 3 pairs")
    assert sum(row[0].text.endswith("→ ResNet18") for row in part.rows) == 4


def test_classes_students_and_what_inference_keeps_are_shown(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.small())
    write_classes(tmp_path, "digits", [f"class {i}" for i in range(10)], [i // 5 for i in range(10)], ["low", "high"])
    costs = {"student_gmacs": 1.82, "inference_images_per_second": 1234.0, "inference_extra_parameters": 0.0}
    page = Page(report_html(frame.assign(**costs), tmp_path))
    ids = {str(a.get("id")) for a in page.of("table")}
    assert {"part-0-class", "part-0-superclass", "part-0-students"} <= ids
    for part in ("class 7", "By superclass", "Students at inference", "1.82", "1.23 k"):
        assert part in page.words
    cell = unpacked(page)[0]["classes"]
    assert (cell["by"], cell["left_out"]) == ("superclass", 0)
    share = sum(percent * images for _, percent, images in cell["rows"]) / sum(row[2] for row in cell["rows"])
    assert share == pytest.approx(frame["top1"].iloc[0], abs=0.1)


def test_files_of_many_cells_are_packed_small(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.frame({P1: {"kd": [80.0 + i / 50 for i in range(150)]}}), epochs=100)
    environment: Counter[tuple[str, str]] = Counter()
    blocks = list(blocks_of_files(Outcomes(tmp_path), frame, CellClasses(Outcomes(tmp_path)), environment))
    assert len(blocks) == 2
    assert sum(map(len, blocks)) / 150 < 4000  # bytes for each cell
    assert environment["torch", "2.4"] == 150


def test_texts_of_the_list_are_stored_once() -> None:
    cells = factory.small().assign(method_title="x", pair_title="y")
    method = next(c for c in cells_data(fill_frame(cells), METRICS.values())["columns"] if c["name"] == "method")
    assert (method["words"], set(method["values"])) == (["x"], {0})
