"""Break one place of the code at a time, and see that the tests notice: ``python tests/mutations.py [WORD...]``.

Works on a copy of the tree. With words, only places whose title (file, old, new) begins with one. Writes into ``mutations.json`` which test
noticed each place; the status is 1 if none noticed one. Half an hour on one core.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
VERDICTS = Path(__file__).with_suffix(".json")


class Mutation(NamedTuple):
    """In ``file``, which holds ``old`` once, it becomes ``new``; one of ``tests`` must then fail."""

    file: str
    old: str
    new: str
    tests: str

    @property
    def title(self) -> str:
        """How the verdicts name it."""
        return f"{self.file}: {self.old} -> {self.new}"


_GOLDEN = "tests/methods/test_golden.py"
_BLOCKS = "tests/methods/test_blocks.py"
_GUARANTEES = "tests/engine/test_guarantees.py::test_"
_RECIPES = "tests/engine/test_recipes.py::test_"
_STATISTICS = "tests/reporting/test_statistics.py"
_PAIRED = "tests/reporting/test_paired.py"
_FRAME = "tests/reporting/test_frame.py tests/reporting/test_matching.py tests/reporting/test_table.py"
_FILES = "tests/store/test_files.py"
_CLAIMS = "tests/store/test_claims.py"
_MERGE = "tests/cli/test_stores.py"

MUTATIONS = (
    # losses
    Mutation("kdbench/blocks.py", "log_target=True) * temperature**2", "log_target=True) * temperature", _GOLDEN),
    Mutation(
        "kdbench/blocks.py",
        'reduction="batchmean", log_target=True) * temp',
        'reduction="mean", log_target=True) * temp',
        _GOLDEN,
    ),
    Mutation("methods/dkd.py", "return alpha * tckd + beta * nckd", "return beta * tckd + alpha * nckd", _GOLDEN),
    Mutation("methods/dkd.py", "position + (position >= column)", "position + (position > column)", _GOLDEN),
    Mutation("methods/dist.py", "_correlation(student.t(), teacher.t())", "_correlation(student, teacher)", _GOLDEN),
    Mutation("methods/dist.py", "second = second - second.mean(dim=1, keepdim=True)", "second = second", _GOLDEN),
    Mutation("methods/nkd.py", ".sum(dim=1).mean() * temperature**2", ".sum(dim=1).mean()", _GOLDEN),
    Mutation("methods/nkd.py", "return target_term + gamma * others", "return target_term + others", _GOLDEN),
    Mutation(
        "methods/lskd.py", "logits.std(dim=1, keepdim=True) + 1e-7", "logits.var(dim=1, keepdim=True) + 1e-7", _GOLDEN
    ),
    Mutation(
        "methods/ofa.py",
        "(teacher_prob + target_mask) ** eps - target_mask",
        "(teacher_prob + target_mask) ** eps",
        _GOLDEN,
    ),
    Mutation("methods/ofa.py", "student_logits / temperature, dim=-1)", "student_logits, dim=-1)", _GOLDEN),
    Mutation(
        "methods/rkd.py",
        "distance_weight * distance + angle_weight * angle",
        "distance_weight * distance + angle",
        _GOLDEN,
    ),
    Mutation(
        "methods/sp.py", "torch.linalg.vector_norm(gram, dim=1", "torch.linalg.vector_norm(gram, ord=1, dim=1", _GOLDEN
    ),
    Mutation("methods/pkt.py", "inner_products(unit, unit) + 1) / 2", "inner_products(unit, unit) + 2) / 2", _GOLDEN),
    Mutation("methods/cc.py", "delta[:-1] * delta[1:]", "delta[1:] * delta[1:]", _GOLDEN),
    Mutation("methods/crd.py", "slope[:, 0] -= 1", "slope[:, 0] -= 0", _GOLDEN),
    Mutation(
        "methods/at.py", "attention(teacher_map, p)).pow(2).mean()", "attention(teacher_map, p)).abs().mean()", _GOLDEN
    ),
    Mutation(
        "methods/vid.py",
        "/ variance + variance.log()",
        "/ variance - variance.log()",
        "tests/methods/test_hint_methods.py::test_vid_follows_its_formula_and_is_least_where_the_variance_is_the_squared_error",
    ),
    # adapters
    Mutation(
        "kdbench/blocks.py",
        "if height >= size[0] and width >= size[1]:",
        "if height > size[0] and width > size[1]:",
        _BLOCKS,
    ),
    Mutation("kdbench/blocks.py", "shift = embedding - scale * pooled", "shift = embedding - pooled", _BLOCKS),
    Mutation(
        "kdbench/blocks.py",
        "tokens.transpose(1, 2).unflatten(2, (height, width))",
        "tokens.transpose(1, 2).unflatten(2, (width, height))",
        _BLOCKS,
    ),
    Mutation(
        "kdbench/blocks.py",
        "min((epoch + 1) / warmup_epochs, 1.0)",
        "min(epoch / warmup_epochs, 1.0)",
        _BLOCKS,
    ),
    # cohort
    Mutation(
        "kdbench/engine/cohort.py",
        "cohort.position = Position(epoch, step + 1)",
        "cohort.position = Position(epoch, step)",
        f"{_GUARANTEES}work_that_is_asked_to_end_goes_on_from_the_step_it_was_in",
    ),
    Mutation(
        "kdbench/engine/cohort.py",
        "        self.drop(cell)\n        self.on_failure",
        "        self.on_failure",
        f"{_GUARANTEES}a_failing_plugin_fails_alone",
    ),
    Mutation(
        "kdbench/engine/cohort.py",
        "                    if shared.was_changed():\n                        shared = self.share",
        "                    if False:\n                        shared = self.share",
        f"{_GUARANTEES}a_failing_plugin_fails_alone",
    ),
    Mutation(
        "kdbench/engine/cohort.py",
        "or self.epoch == self.max_epochs:",
        "or self.epoch > self.max_epochs:",
        "tests/engine/test_trackers.py::test_an_epoch_that_is_not_evaluated_has_no_row",
    ),
    Mutation(
        "kdbench/engine/cell.py",
        "torch.manual_seed(spec.net_seed)",
        "torch.manual_seed(spec.method_seed)",
        f"{_GUARANTEES}initial_weights_and_batches_do_not_depend_on_the_method",
    ),
    Mutation(
        "kdbench/engine/cell.py",
        '"stream": self.stream.state_dict(),',
        '"stream": {},',
        f"{_GUARANTEES}resume_ends_with_the_numbers_of_an_uninterrupted_run",
    ),
    Mutation(
        "kdbench/engine/cell.py",
        "return self.distiller if self.average is None else self.average.module",
        "return self.distiller",
        f"{_RECIPES}averaged_weights_follow_the_weights_and_are_what_is_measured",
    ),
    # store
    Mutation("kdbench/store/files.py", "if not (once and _link(temporary, path)):", "if True:", _FILES),
    Mutation("kdbench/store/files.py", "    if rest != hashlib", "    if False and rest != hashlib", _FILES),
    Mutation(
        "kdbench/store/files.py",
        "return value if math.isfinite(value) else _refuse(text)",
        "return value",
        f"{_FILES} tests/store/test_result.py",
    ),
    Mutation(
        "kdbench/store/claims.py", "if self._clock() - since < self.seconds:", "if self._clock() - since < 0:", _CLAIMS
    ),
    Mutation("kdbench/store/claims.py", "if _token_in(aside) != token:", "if False:", _CLAIMS),
    Mutation("kdbench/store/merge.py", "elif _numbers(other) == _numbers(found.result):", "elif True:", _MERGE),
    Mutation("kdbench/store/merge.py", "if first != checksum and line not in merge.conflicts:", "if False:", _MERGE),
    # statistics
    Mutation("kdbench/reporting/statistics.py", "stdtrit(n - 1, 0.975)", "stdtrit(n, 0.975)", _STATISTICS),
    Mutation(
        "kdbench/reporting/statistics.py", "(apart - of_one_teacher) *", "(of_one_teacher - apart) *", _STATISTICS
    ),
    Mutation(
        "kdbench/reporting/statistics.py", "true / (true + variances)", "variances / (true + variances)", _STATISTICS
    ),
    Mutation("kdbench/reporting/statistics.py", "ranks, data = ranks[data != 0], data[data != 0]", "pass", _STATISTICS),
    Mutation(
        "kdbench/reporting/statistics.py", "np.minimum(1.0, np.maximum.accumulate(", "np.minimum(1.0, (", _STATISTICS
    ),
    Mutation("kdbench/reporting/statistics.py", "data > band + RESOLUTION", "data >= band", _STATISTICS),
    Mutation("kdbench/reporting/paired.py", "if fewer == more:", "if fewer > more:", _PAIRED),
    Mutation("kdbench/reporting/paired.py", "scale = 100 / first.size", "scale = 100 / len(first)", _PAIRED),
    Mutation("kdbench/reporting/paired.py", "set(found[0]) & set(found[1])", "set(found[0])", _PAIRED),
    Mutation(
        "kdbench/reporting/ranks.py",
        "found or end > found[-1][1]",
        "found or end >= found[-1][1]",
        "tests/reporting/test_statistics.py tests/reporting/test_plots.py",
    ),
    # report
    Mutation("kdbench/reporting/frame.py", '(second == "")]', '(second != "")]', _FRAME),
    Mutation("kdbench/reporting/frame.py", "2 * counts[name] >= reached", "counts[name] >= reached", _FRAME),
    Mutation(
        "kdbench/reporting/frame.py", 'where(cells["state"] == "done")', 'where(cells["state"] != "absent")', _FRAME
    ),
    Mutation(
        "kdbench/reporting/frame.py",
        'keep="last").drop(columns="_done")',
        'keep="first").drop(columns="_done")',
        _FRAME,
    ),
)


def copy_of(root: Path, tree: Path) -> None:
    """A tree from which ``kdbench`` is imported whole: packages that lie elsewhere are linked below ``kdbench/``."""
    left_out = (".git", ".venv", "site", "runs", "*.egg-info")
    shutil.copytree(root, tree, ignore=shutil.ignore_patterns(*left_out))
    packages = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    for package, folder in packages.items():
        if package != folder:
            (tree / package.replace(".", "/")).symlink_to(tree / folder)


def noticed_by(tree: Path, mutation: Mutation) -> str | None:
    """The test that fails on the mutated tree, which is as before afterwards."""
    path = tree / mutation.file
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        # A child of this process, which has imported the libraries and nothing of the tree.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            return pool.submit(first_failure, tree, mutation.tests.split()).result()
    finally:
        path.write_text(before, encoding="utf-8")


def first_failure(tree: Path, tests: list[str]) -> str | None:
    """Run tests in this process until one fails."""
    found = []

    class Listener:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                found.append(report.nodeid)

    os.chdir(tree)
    os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
    sys.dont_write_bytecode = True  # what is broken and what is mended may have one size and time
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(
            ["-n", "0", "-x", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests], plugins=[Listener()]
        )
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(said.getvalue())
    return found[0] if found else None


def main(words: list[str]) -> int:
    """Try the mutations; the status is 1 if no test noticed one of them."""
    chosen = [mutation for mutation in MUTATIONS if not words or mutation.title.startswith(tuple(words))]
    known = json.loads(VERDICTS.read_text(encoding="utf-8")) if VERDICTS.is_file() else {}
    verdicts = {mutation.title: known[mutation.title] for mutation in MUTATIONS if mutation.title in known}
    for library in (
        "torch",
        "torchvision",
        "timm",
        "mmengine.runner",
        "pandas",
        "scipy.stats",
        "seaborn",
        "sklearn.datasets",
    ):
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "kdbench"
        copy_of(ROOT, tree)
        for mutation in chosen:
            verdicts[mutation.title] = noticed_by(tree, mutation)
            print(f"{mutation.title}\n    {verdicts[mutation.title] or 'NOT NOTICED'}", flush=True)
            VERDICTS.write_text(json.dumps(verdicts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    survivors = sum(verdicts[mutation.title] is None for mutation in chosen)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
