"""The list of places that ``mutations.py`` breaks keeps up with the code. Breaking them takes an hour: ``python tests/mutations.py``."""

from __future__ import annotations

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
