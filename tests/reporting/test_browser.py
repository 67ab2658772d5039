"""The report in a real browser, headless: sort, filter, open a cell, with mouse and keyboard, large and small.

Needs chromium with its driver, and selenium; without them nothing is tested here.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdbench.reporting.html import page as page_module
from kdbench.reporting.html.page import write_report
from kdbench.reporting.leaderboard import build_leaderboard
from tests.reporting import factory
from tests.reporting.stored import write_store

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    # selenium leaves the sockets to its driver to be closed by the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1"
)
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a home of its own and without a network."""
    assert CHROMIUM
    assert DRIVER
    home = tmp_path_factory.mktemp("home")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={home / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER, env={**os.environ, "HOME": str(home)})
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_network_conditions(offline=True, latency=0, throughput=0)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    frame = pd.concat(
        [
            factory.small(),
            factory.frame({"swin_tiny--resnet18": {"crd": None}}, state="failed", reason="loss became NaN in epoch 3"),
            factory.frame({"swin_tiny--resnet18": {"<b id=x>": 70.0}}, method_display="<b id=x>"),
        ],
        ignore_index=True,
    )
    return write_report(
        write_store(folder / "runs", frame), folder / "runs", folder / "report.html", "kdbench report toy"
    )


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The report, just opened; afterwards the console must hold no error."""
    load(browser, page)
    yield browser
    assert complaints(browser) == []


def load(browser: Any, page: Path, size: tuple[int, int] = DESKTOP, hash: str = "") -> float:
    browser.set_window_size(*size)
    browser.get("about:blank")
    browser.get_log("browser")
    begun = time.monotonic()
    browser.get(f"{page.as_uri()}{hash}")
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    return time.monotonic() - begun


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def texts(browser: Any, selector: str) -> list[str]:
    return [
        text.strip()
        for text in browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).map(e => e.textContent)",
            selector,
        )
    ]


def button(browser: Any, table: str, title: str) -> Any:
    return next(b for b in browser.find_elements(By.CSS_SELECTOR, f"{table} th button") if b.text.strip() == title)


def until(browser: Any, script: str) -> None:
    """Wait until an expression of the page is true: following a link and unpacking a cell take a moment."""
    for _ in range(100):
        if browser.execute_script(f"return Boolean({script})"):
            return
        time.sleep(0.05)
    raise AssertionError(f"never true: {script}")


def dialog_text(browser: Any, title: str) -> str:
    cell = "document.querySelector('#cell')"
    until(
        browser, f"{cell}.open && {cell}.textContent.includes({title!r}) && !{cell}.textContent.includes('unpacking')"
    )
    return str(browser.execute_script(f"return {cell}.textContent"))


def test_cells_are_sorted_both_ways_with_missing_figures_last(opened: Any) -> None:
    top1 = "#cells-table td:nth-child(5)"
    button(opened, "#cells-table", "top-1 (%)").click()
    falling = texts(opened, top1)
    assert falling[0] == "88.00"
    assert [float(t) for t in falling if t] == sorted((float(t) for t in falling if t), reverse=True)
    assert falling[-1] == ""
    header = opened.find_element(By.CSS_SELECTOR, "#cells-table th:nth-child(5)")
    assert header.get_attribute("aria-sort") == "descending"
    button(opened, "#cells-table", "top-1 (%)").send_keys(Keys.ENTER)
    rising = texts(opened, top1)
    assert (rising[0], rising[-1], header.get_attribute("aria-sort")) == ("60.00", "", "ascending")


def test_leaderboard_and_matrix_are_sorted_by_number(opened: Any) -> None:
    gain = button(opened, "#part-0-leaderboard", "gain over KD")
    gain.click()
    gain.click()
    shown = [float(t) for t in texts(opened, "#part-0-leaderboard tbody td:nth-child(3)") if t]
    assert shown == sorted(shown)
    button(opened, "#part-0-matrix", "OFA").click()
    column = 1 + [t.strip() for t in texts(opened, "#part-0-matrix thead th")].index("OFA")
    shown_ofa = texts(opened, f"#part-0-matrix tbody td:nth-child({column})")
    assert [t.split()[0] for t in shown_ofa] == ["87.0", "74.5", "64.0"]
    assert texts(opened, "#part-0-matrix tfoot th")[0].startswith("average")


def test_cells_are_filtered_by_words_and_by_choice(opened: Any) -> None:
    opened.find_element(By.ID, "search").send_keys("ofa resnet18")
    assert texts(opened, "#cells-table tbody th") == ["OFA", "OFA"]
    assert texts(opened, "#cells-count")[0].startswith("2 cells (of 32)")
    opened.find_element(By.ID, "clear").click()
    state = opened.find_element(By.CSS_SELECTOR, "select[data-column=state]")
    state.send_keys("failed")
    assert texts(opened, "#cells-table tbody tr") == ["CRDSwin\u2011T → ResNet180failed"]
    opened.find_element(By.ID, "clear").click()
    assert texts(opened, "#cells-count")[0].startswith("32 cells,")


def test_a_number_leads_to_its_cell_with_config_curve_and_log(opened: Any) -> None:
    link = opened.find_element(By.XPATH, "//table[@id='part-0-matrix']//a[starts-with(., '87.0')]")
    opened.execute_script("arguments[0].focus()", link)
    link.send_keys(Keys.ENTER)
    said = dialog_text(opened, "OFA on Swin\u2011T → ResNet18, seed 0")
    for part in ('"temperature": 4', "epoch 5/5", "86.00", "toy/short/swin_tiny--resnet18/ofa/seed0-"):
        assert part in said
    assert opened.find_element(By.CSS_SELECTOR, "svg.curve path").get_attribute("d").count("L") == 4
    opened.find_element(By.XPATH, "//div[@id='cell-seeds']/button[.='seed 1']").click()
    dialog_text(opened, "OFA on Swin\u2011T → ResNet18, seed 1")
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not opened.execute_script("return document.querySelector('#cell').open")
    until(opened, "location.hash === ''")


def test_facets_rank_as_the_leaderboard_of_those_pairs_does(opened: Any) -> None:
    choose(opened, "Student", "CNN")
    part = factory.small()
    part = part[part["student_family"] == "cnn"]
    board = build_leaderboard(part)
    expected = {s.display: (s.rank, s.gain, s.average_rank, s.wins, s.harmed) for s in board.standings}
    shown = opened.execute_script(
        "return [...document.querySelectorAll('#part-0-view-table tbody tr')].map(r => [...r.cells].map(c => "
        "(c.querySelector('a') || c.firstChild || c).textContent))"
    )
    found = {row[0]: row[1:] for row in shown}
    for name in ("OFA", "DKD", "FBT"):
        rank, gain, average, wins, harmed = expected[name]
        assert found[name][:3] == [str(rank), f"{gain:+.2f}", f"{average:.2f}"]
        assert (found[name][3].split("/")[0], found[name][5]) == (str(wins), f"{harmed[0]}/{harmed[1]}")
    assert texts(opened, "#part-0-leaderboard tbody th") == []
    assert [row.split()[0] for row in texts(opened, "#part-0-matrix tbody th")] == ["Swin\u2011T"]
    choose(opened, "Student", "all")
    assert len(texts(opened, "#part-0-matrix tbody th")) == 3
    assert texts(opened, "#part-0-leaderboard tbody th")


def choose(browser: Any, label: str, value: str) -> None:
    browser.execute_script(
        "const s = [...document.querySelectorAll('#facets label')].find(l => l.firstChild.textContent === arguments[0])"
        ".querySelector('select'); s.value = arguments[1] === 'all' ? '' : [...s.options].find(o => o.textContent === arguments[1]).value;"
        "s.dispatchEvent(new Event('change'))",
        label,
        value,
    )


def test_a_shared_link_restores_the_view(browser: Any, page: Path) -> None:
    load(browser, page)
    choose(browser, "Student", "CNN")
    browser.execute_script(
        "document.querySelector('[data-chip=dkd]').click(); document.querySelector('[data-flip]').click()"
    )
    button(browser, "#part-0-view-table", "method").click()
    browser.find_element(By.ID, "share").click()
    address = browser.execute_script("return location.hash")
    before = browser.execute_script("return document.querySelector('main').innerText")
    load(browser, page, hash=address)
    assert "DKD" not in texts(browser, "#part-0-matrix tbody th")
    assert "OFA" in texts(browser, "#part-0-matrix tbody th")
    after = browser.execute_script("return document.querySelector('main').innerText")
    assert after.replace("Copied", "Share this view") == before.replace("Copied", "Share this view")
    assert complaints(browser) == []


def test_tables_are_taken_away_as_they_are_shown(opened: Any) -> None:
    opened.execute_script(
        "URL.createObjectURL = blob => { blob.text().then(text => { window.taken = text; }); return '#'; };"
        "HTMLAnchorElement.prototype.click = () => {}"
    )
    button(opened, "#part-0-matrix", "OFA").click()
    for title, first in (("CSV", "pair,"), ("LaTeX", "\\begin{tabular}"), ("JSON", "[")):
        opened.execute_script(
            "window.taken = ''; [...document.querySelectorAll('#part-0-matrix-box .take button')]"
            ".find(b => b.textContent === arguments[0]).click()",
            title,
        )
        until(opened, "window.taken")
        text = opened.execute_script("return window.taken")
        assert text.startswith(first)
        assert "Swin-T" in text
        assert text.index("ResNet18") < text.index("ResMLP")  # sorted, the best of OFA first


def test_a_cell_tells_its_accuracy_by_class(opened: Any) -> None:
    opened.execute_script("location.hash = 'cell-0'")
    assert "Accuracy by class, lowest first" in dialog_text(opened, "seed 0")
    opened.find_element(By.XPATH, "//summary[starts-with(., 'Accuracy by class')]").click()
    shown = [float(text) for text in texts(opened, "#cell-files table td:nth-child(2)")]
    assert len(shown) == 10
    assert shown == sorted(shown)


#: What browsers from before 2022 and 2023 lack.
OLD = "delete window.DecompressionStream; delete HTMLDialogElement.prototype.showModal; delete HTMLDialogElement.prototype.close"


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_browsers_without_dialogs_and_streams_open_cells_too(browser: Any, page: Path, size: tuple[int, int]) -> None:
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": OLD})["identifier"]
    try:
        load(browser, page, size, hash="#cell-3")
        assert browser.execute_script("return typeof DecompressionStream") == "undefined"
        said = dialog_text(browser, "seed 1")
        assert '"temperature": 4' in said
        assert "epoch 5/5" in said
        box = browser.execute_script("return document.querySelector('#cell').getBoundingClientRect().toJSON()")
        assert 0 <= box["left"] < box["right"] <= max(size[0], 500)
        webdriver.ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        until(browser, "!document.querySelector('#cell').hasAttribute('open') && location.hash === ''")
        assert complaints(browser) == []
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


def test_all_kinds_of_compressed_blocks_are_unpacked_without_streams(browser: Any, page: Path) -> None:
    """Stored, fixed and dynamic codes, long distances and runs, against what Python packed."""
    load(browser, page)
    source = (Path(page_module.__file__).parent / "cells.js").read_text()
    gunzip = source[source.index("function gunzip") : source.index("// Browsers from before 2022")]
    rng = random.Random(0)  # noqa: S311 - no secret
    noise = bytes(rng.randrange(256) for _ in range(70_000))
    texts_ = [b"", b"a", b"abc" * 5000, noise, json.dumps(list(range(30_000))).encode(), noise[:300] * 200 + noise]
    packed = [gzip.compress(text, level, mtime=0) for text in texts_ for level in (0, 1, 6, 9)]
    for strategy in (zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):
        for text in texts_:
            packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9, strategy)
            packed.append(packer.compress(text) + packer.flush())
    for content in packed:
        sum_ = browser.execute_script(
            gunzip + "const b = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)); const o = gunzip(b);"
            "let s = 0; for (const v of o) s = (s * 31 + v) % 1000003; return [o.length, s]",
            base64.b64encode(content).decode(),
        )
        expected = 0
        for value in gzip.decompress(content):
            expected = (expected * 31 + value) % 1000003
        assert sum_ == [len(gzip.decompress(content)), expected]


def test_a_link_from_elsewhere_opens_the_cell_at_once(browser: Any, page: Path) -> None:
    load(browser, page, hash="#cell-3")
    assert '"temperature": 4' in dialog_text(browser, "seed 1")


def test_a_method_of_the_leaderboard_leads_to_its_cells(opened: Any) -> None:
    opened.find_element(By.XPATH, "//table[@id='part-0-leaderboard']//a[.='DKD']").click()
    until(opened, "document.querySelector('select[data-column=method]').value !== ''")
    assert set(texts(opened, "#cells-table tbody th")) == {"DKD"}


def test_names_stay_text_everywhere(opened: Any) -> None:
    assert opened.execute_script("return document.querySelector('b#x, b[id]')") is None
    assert "<b id=x>" in texts(opened, "#cells-table tbody th")


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_page_is_not_wider_than_the_screen(browser: Any, page: Path, size: tuple[int, int]) -> None:
    load(browser, page, size)
    # Chromium's window has a smallest width: the device's size is set apart from it.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    try:
        width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width == [size[0], size[0]]
        small = browser.execute_script(
            "return [...document.querySelectorAll('.button, input, select')].filter(e => e.offsetParent && "
            "e.getBoundingClientRect().height < 36).map(e => e.id)"
        )
        assert small == []
        shots = os.environ.get("KDBENCH_SCREENSHOTS")
        if shots:
            Path(shots).mkdir(parents=True, exist_ok=True)
            browser.save_screenshot(f"{shots}/report-{size[0]}.png")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_ten_thousand_cells_open_in_three_seconds(browser: Any, tmp_path: Path) -> None:
    methods = {f"m{i}": [50.0 + i % 7, 51.0, 52.0, 53.0] for i in range(50)}
    figures = {f"t{i % 5}--s{i}": {"scratch": [40.0] * 4, "kd": [50.0] * 4, **methods} for i in range(48)}
    frame = factory.frame(figures)
    assert len(frame) == 9984
    path = write_report(frame, tmp_path, tmp_path / "large.html")
    assert load(browser, path) < 3
    begun = time.monotonic()
    button(browser, "#cells-table", "top-1 (%)").click()
    browser.find_element(By.ID, "search").send_keys("m49 s47")
    assert texts(browser, "#cells-count")[0].startswith("4 cells")
    assert time.monotonic() - begun < 3
    assert complaints(browser) == []
