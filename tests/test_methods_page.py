"""docs/methods.md and the packaged figures are up to date, the guide's examples work, and listings need no torch."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.cli import parser
from kdbench.cli.listing import COSTS, extra_parameters, short_count
from kdbench.conformance import CHECKS, check_method
from kdbench.method import NEEDS
from kdbench.plugins.registry import catalog

pytestmark = pytest.mark.usefixtures("forget_plugins")

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "methods.py"))
PAGE: Path = SCRIPT["PAGE"]
GUIDE = PAGE.with_name("adding-a-method.md")
STALE = "is stale: run python docs/methods.py"


def test_the_page_of_methods_is_what_the_code_says() -> None:
    assert PAGE.read_text() == SCRIPT["methods_page"](catalog(), extra_parameters()), f"docs/methods.md {STALE}"


def test_the_packaged_figures_are_those_of_the_code() -> None:
    assert json.loads(COSTS.read_text())["extra_parameters"] == SCRIPT["measure"](catalog()), (
        f"method_costs.json {STALE}"
    )


def test_ofa_adds_as_many_parameters_to_resnet18_as_its_official_code() -> None:
    assert extra_parameters()["ofa"]["usual"] == 1_626_256


def test_the_page_has_every_method_hyper_parameter_and_preset() -> None:
    text = PAGE.read_text()
    for entry in catalog().values():
        section = text.split(f"\n### {entry.display}\n")[1].split("\n### ")[0]
        assert f"`{entry.name}`" in section
        assert entry.fidelity in section
        for name, parameter in entry.hyperparameters.items():
            assert f"| `{name}` | `{parameter.default}` |" in section
        for dataset, values in entry.presets.items():
            assert dataset in section
            for value in values.values():
                assert f"`{value}`" in section


def test_the_page_says_what_each_reference_method_is_compared_with() -> None:
    for entry in catalog().values():
        section = PAGE.read_text().split(f"\n### {entry.display}\n")[1].split("\n### ")[0]
        compared = re.findall(r"^Compared with [\w.-]+/[\w.-]+(?:@[0-9a-f]{7})?[,:] .*", section, re.MULTILINE)
        assert compared or entry.fidelity != "reference" or not entry.uses_teacher, entry.name


def test_every_link_of_the_page_leads_somewhere() -> None:
    text = PAGE.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    for target in re.findall(r"\]\(([^)]*)\)", text + GUIDE.read_text()):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (PAGE.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "?"),
        (0, "0"),
        (640, "640"),
        (1_000, "1.00 k"),
        (12_345, "12.3 k"),
        (523_680, "524 k"),
        (1_626_256, "1.63 M"),
        (123_456_789, "123 M"),
    ],
)
def test_parameters_are_counted_in_a_few_characters(number, text) -> None:
    assert short_count(number) == text


def test_the_list_of_methods_fits_120_columns_and_shows_extra_parameters(capsys) -> None:
    assert parser.main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    (row,) = (line for line in lines if line.startswith("ofa "))
    assert "1.63 M" in row
    assert parser.main(["list", "methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ofa"]["extra_parameters"] == extra_parameters()["ofa"]
    assert set(rows["kd"]["extra_parameters"]) == set(SCRIPT["REFERENCE_PAIRS"])


def test_a_plugin_is_listed_without_extra_parameters(tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.py"
    assert parser.main(["new-method", "mine", "--to", str(path)]) == 0
    capsys.readouterr()
    assert parser.main(["list", "methods", "--plugin", str(path)]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("mine "))
    assert re.search(r"\?", row)


def test_listing_methods_does_not_load_torch() -> None:
    program = (
        "import sys; from kdbench.cli import parser; parser.main(['list', 'methods']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_the_guides_example_passes_all_checks(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(from typing.*?)```", GUIDE.read_text(), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 25
    path = tmp_path / "lasthint.py"
    path.write_text(code)
    assert [str(failure) for failure in check_method(catalog([str(path)])["lasthint"])] == []


def test_the_guide_explains_every_check_and_every_tap() -> None:
    text = GUIDE.read_text()
    for check, meaning in CHECKS.items():
        assert f"| {check} | {meaning} |" in text
    for tap in NEEDS:
        assert f'| `"{tap}"` |' in text
