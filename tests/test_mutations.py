"""The list of places that ``mutations.py`` breaks keeps up with the code. To break them: ``python tests/mutations.py``."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

MUTATIONS = runpy.run_path(str(Path(__file__).with_name("mutations.py")))["MUTATIONS"]
ROOT = Path(__file__).parents[1]


def test_every_place_to_break_is_in_the_code_once_and_still_parses_when_broken() -> None:
    assert len(MUTATIONS) >= 40
    for mutation in MUTATIONS:
        text = (ROOT / mutation.file).read_text(encoding="utf-8")
        assert text.count(mutation.old) == 1, mutation
        compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
        for test in mutation.tests.split():
            file, _, name = test.partition("::")
            assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), mutation


def test_every_place_was_broken_and_a_test_noticed_it() -> None:
    verdicts = json.loads((ROOT / "tests" / "mutations.json").read_text(encoding="utf-8"))
    assert {mutation.title for mutation in MUTATIONS} == set(verdicts)
    for title, test in verdicts.items():
        assert test, f"no test notices {title}"
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), test
