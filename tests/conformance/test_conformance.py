"""``kdbench test``: every built-in method passes, and for every check there is a method that fails it."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdbench.cli import parser
from kdbench.conformance import CHECKS, Failure, Skip, bench, check_method, examine, inspector
from kdbench.conformance.bench import PAIRS, Pair, Trial, net_info, other_nets, sample, teacher_hashes
from kdbench.conformance.checks import one_step, sure_student
from kdbench.conformance.settings import _others
from kdbench.hyperparameters import Hyperparameter
from kdbench.plugins.registry import catalog
from kdbench.suite.suite import load_suite
from tests.few import few

pytestmark = pytest.mark.usefixtures("forget_plugins")

BUILT_IN = catalog()
#: Each family once on either side.
THREE = (Pair("vit", "mlp"), Pair("mlp", "cnn"), Pair("cnn", "vit"))
#: Methods of every kind, which are checked by default; the others by name.
FEW = {"kd", "crd", "ofa", "simkd", "minilmv2"}

PLUGIN = '''
import random, sys, time, warnings
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from typing import Annotated
from kdbench import Method, Range, register_method

TOP

@register_method("NAME")
class Plugin(Method):
    """A paper."""

    needs = frozenset({"logits", "stages", "embedding"})
    CLASS

    def __init__(
        self, student, teacher, task, *,
        temperature: Annotated[float, Range(above=0)] = 2.0, kd_weight: Annotated[float, Range(at_least=0)] = 1.0, SETTING
    ):
        super().__init__(student, teacher, task)
        self.temperature, self.kd_weight = temperature, kd_weight
        self.linear = nn.Linear(student.embedding_dim, teacher.embedding_dim)
        INIT

    def forward(self, batch, student, teacher):
        t = self.temperature
        kd = F.mse_loss(student.logits.float() / t, teacher.logits.float() / t)
        hint = F.mse_loss(self.linear(student.embedding), teacher.embedding)
        ce = batch.task_loss(student.logits)
        terms = {"ce": ce, "kd": self.kd_weight * kd, "hint": hint}
        FORWARD
        return terms
'''


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a method that conforms but for what is put into it."""

    def write(name: str = "mine", **parts: str) -> Path:
        text = PLUGIN.replace("NAME", name).replace(", SETTING", f", {parts['SETTING']}" if "SETTING" in parts else "")
        for key, indent in (("TOP", ""), ("CLASS", "    "), ("INIT", "        "), ("FORWARD", "        ")):
            body = textwrap.indent(textwrap.dedent(parts.get(key, "")).strip() or "pass", indent).strip()
            text = text.replace(key, body, 1)
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    return write


def failures_of(path: Path, pairs=THREE, name: str = "mine") -> list[Failure]:
    return check_method(catalog([str(path)])[name], pairs=pairs)


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        pytest.param(name, pair, marks=[] if name in FEW else [pytest.mark.slow])
        for name, pair in zip(BUILT_IN, itertools.cycle(THREE), strict=False)
    ],
    ids=str,
)
def test_every_built_in_method_passes_all_checks_on_one_kind_of_pair(name: str, pair: Pair) -> None:
    pair = Pair("vit", "vit") if "attention" in BUILT_IN[name].needs else pair
    assert [str(failure) for failure in check_method(BUILT_IN[name], pairs=(pair,))] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_method_passes_all_checks_on_all_nine_kinds_of_pair(name: str) -> None:
    found = examine(BUILT_IN[name])
    assert [str(failure) for failure in found.failures] == []
    assert all("it needs attention" in skip.reason for skip in found.skips)


def test_nets_of_two_classifiers_are_tried_too() -> None:
    suite, pair, cls = load_suite("digits-chains"), Pair("resnet-l", "deit-s"), BUILT_IN["deit"].load()
    with other_nets((pair,), {name: suite.net(name) for name in (pair.teacher, pair.student)}):
        backbone = [name for name, _ in Trial(cls, pair).backbone()]
        assert "dist_token" in backbone
        assert not any(name.startswith("head") for name in backbone)
        assert [str(wrong) for check in (one_step, sure_student) for wrong in check(cls, pair)] == []


def test_a_sound_plugin_passes(write) -> None:
    assert [str(failure) for failure in failures_of(write(), PAIRS)] == []


# check -> (what is put into a sound method, words of the advice)
UNSOUND = {
    "import: the module raises": ("import", {"TOP": "raise RuntimeError('boom')"}, "boom"),
    "terms: a later phase has others": (
        "terms",
        {
            "INIT": "self.phases = (10,)",
            "FORWARD": "if batch.epoch >= 10:\n    return {'later': batch.task_loss(student.logits)}",
        },
        "the phase from epoch 10 are later",
    ),
    "import: the module leaves": ("import", {"TOP": "sys.exit(3)"}, "SystemExit"),
    "declaration: version 0": ("declaration", {"CLASS": "version = 0"}, "1 or more"),
    "declaration: an unknown tap": (
        "declaration",
        {"CLASS": "needs = frozenset({'logits', 'stage'})"},
        "only classifier",
    ),
    "declaration: a preset of an unknown hyper-parameter": (
        "declaration",
        {"CLASS": "presets = {'cifar100': {'tau': 1.0}}"},
        "the preset 'cifar100' cannot be built",
    ),
    "declaration: a preset of an unknown data set": ("declaration", {"CLASS": "presets = {'cifar': {}}"}, "known are"),
    "declaration: a default of another type": (
        "declaration",
        {"SETTING": "width: int = 1.5", "INIT": "self.w = nn.Linear(1, int(width))"},
        "is no int",
    ),
    "build: an exception": ("build", {"INIT": "student.stages[4]"}, "IndexError"),
    "build: it reads a value": ("build", {"INIT": "self.top = task.train_labels.max().item()"}, "device meta"),
    "build: it creates a parameter later": (
        "build",
        {"FORWARD": "self.late = nn.Parameter(torch.zeros(1))\nterms['late'] = self.late.sum()"},
        "create them all in __init__",
    ),
    "build: no call of the base class with its arguments": ("build", {"INIT": "self.task = None"}, "super().__init__"),
    "build: supports() says no sentence": (
        "build",
        {"CLASS": "@classmethod\ndef supports(cls, student, teacher):\n    return True"},
        "return a sentence",
    ),
    "terms: no dict": ("terms", {"FORWARD": "return ce"}, "return a dict"),
    "terms: a vector": ("terms", {"FORWARD": "terms['v'] = student.logits.mean(0)"}, "reduce it to a scalar"),
    "terms: a number": ("terms", {"FORWARD": "terms['n'] = 1.0"}, "return a scalar tensor"),
    "terms: not a number": ("terms", {"FORWARD": "terms['ce'] = ce * float('nan')"}, "is nan"),
    "terms: a name that comes and goes": (
        "terms",
        {"INIT": "self.n = 0", "FORWARD": "self.n += 1\nterms[f'n{self.n}'] = ce"},
        "return the same",
    ),
    "terms: a field that needs does not name": (
        "terms",
        {"CLASS": "needs = frozenset({'logits'})"},
        "add what you use to needs",
    ),
    "student: everything detached": (
        "student",
        {"FORWARD": "terms = {'hint': F.mse_loss(self.linear(student.embedding.detach()), teacher.embedding)}"},
        "without detach()",
    ),
    "student: an infinite gradient": (
        "student",
        {"FORWARD": "terms['root'] = (student.logits - student.logits.detach()).square().sum().sqrt()"},
        "guard roots",
    ),
    "teacher: train mode": (
        "teacher",
        {
            "CLASS": "needs = frozenset({'logits', 'stages', 'embedding', 'stagewise'})",
            "FORWARD": "teacher.stagewise.net.train()",
        },
        "leave its mode",
    ),
    "teacher: unfrozen": (
        "teacher",
        {
            "CLASS": "needs = frozenset({'logits', 'stages', 'embedding', 'classifier'})",
            "FORWARD": "weight = teacher.classifier.weight.requires_grad_()\nterms['w'] = weight.square().mean() * ce",
        },
        "do not unfreeze",
    ),
    "teacher: overwritten": (
        "teacher",
        {
            "CLASS": "needs = frozenset({'logits', 'stages', 'embedding', 'classifier'})",
            "FORWARD": "with torch.no_grad():\n    teacher.classifier.weight.mul_(1.01)",
        },
        "never write to the teacher",
    ),
    "parameters: an unused one": (
        "parameters",
        {"INIT": "self.unused = nn.Linear(2, 2)"},
        "unused.weight gets no gradient",
    ),
    "in place: the teacher's logits": ("in place", {"FORWARD": "teacher.logits.mul_(2)"}, "teacher.logits was changed"),
    "in place: the labels": ("in place", {"FORWARD": "batch.labels.zero_()"}, "clone before writing"),
    "batch of one: batch normalisation": (
        "batch of one",
        {
            "INIT": "self.norm = nn.BatchNorm1d(student.embedding_dim)",
            "FORWARD": "terms['n'] = self.norm(student.embedding).square().mean()",
        },
        "give them a value for one",
    ),
    "learning: a gradient of the wrong sign": (
        "learning",
        {"FORWARD": "terms = {name: 2 * term.detach() - term for name, term in terms.items()}"},
        "what is detached",
    ),
    "logits: the logarithm of a softmax": (
        "logits",
        {"FORWARD": "terms['ce'] = F.nll_loss(student.logits.softmax(1).log(), batch.labels)"},
        "use log_softmax",
    ),
    "logits: one dtype into another": (
        "logits",
        {
            "INIT": "self.register_buffer('bank', torch.zeros(task.num_train, task.num_classes))",
            "FORWARD": "bank = self.bank.index_copy_(0, batch.index, student.logits.detach())\nterms['b'] = ce + bank.sum()",
        },
        "float32",
    ),
    "sure student: the logarithm of 1 - p": (
        "sure student",
        {
            "FORWARD": "p = student.logits.softmax(1).gather(1, batch.labels[:, None])\nterms['p'] = -(1 - p).log().mean()",
        },
        "a logsumexp over the other classes",
    ),
    "sure student: only what goes through the classifier": (
        "sure student",
        {
            "CLASS": "needs = frozenset({'logits', 'stages', 'embedding', 'classifier'})",
            "FORWARD": "p = student.classifier(student.embedding).softmax(1)\nterms['p'] = F.nll_loss(p.log(), batch.labels)",
        },
        "log_softmax instead of log(softmax)",
    ),
    "precision: a bank that takes only single precision": (
        "precision",
        {
            "INIT": "self.register_buffer('bank', torch.zeros(task.num_train, teacher.embedding_dim))",
            "FORWARD": "self.bank[batch.index] = self.linear(student.embedding).detach()\n"
            "terms['b'] = 0.1 * self.bank.mean()",
        },
        "bring tensors to one dtype",
    ),
    "state: a counter of its own": (
        "state",
        {"INIT": "self.n = 0", "FORWARD": "self.n += 1\nterms['ce'] = ce * (1 + 1 / self.n)"},
        "parameters and buffers",
    ),
    "seed: the clock": ("seed", {"FORWARD": "terms['ce'] = ce * (1 + time.perf_counter_ns() % 1000 / 1e6)"}, "time"),
    "seed: it seeds": ("seed", {"FORWARD": "torch.manual_seed(987_654)"}, "manual_seed"),
    "seed: NumPy at the start": (
        "seed",
        {
            "INIT": "self.register_buffer('x', torch.tensor(np.random.rand(3)))",
            "FORWARD": "terms['ce'] = ce + self.x.sum()",
        },
        "default generator",
    ),
    "prediction: another shape": (
        "prediction",
        {"CLASS": "def predict(self, student):\n    return student.logits[:, :2]"},
        "(B, C)",
    ),
    "prediction: what it does not tap": (
        "prediction",
        {"CLASS": "def predict(self, student):\n    return student.embedding * 1"},
        "predict_needs",
    ),
    "waiting: item": ("waiting", {"FORWARD": "terms['ce'] = ce * (1 + 0 * ce.item())"}, "item"),
    "waiting: an if": ("waiting", {"FORWARD": "if ce > 0:\n    terms['ce'] = ce * 1.1"}, "torch.where"),
    "waiting: a mask as index": (
        "waiting",
        {"FORWARD": "terms['x'] = student.logits[batch.labels > 0].square().mean()"},
        "mask",
    ),
    "global state: deterministic algorithms": (
        "global state",
        {"INIT": "torch.use_deterministic_algorithms(True)"},
        "deterministic algorithms",
    ),
    "global state: NumPy's seed": ("global state", {"INIT": "np.random.seed(987_654)"}, "NumPy's generator"),
    "global state: warnings": (
        "global state",
        {"FORWARD": "warnings.simplefilter('ignore', ResourceWarning)"},
        "warning filters",
    ),
    "global state: a hook": (
        "global state",
        {
            "CLASS": "needs = frozenset({'logits', 'stages', 'embedding', 'stagewise'})",
            "FORWARD": "teacher.stagewise.net.register_forward_hook(lambda *a: None)",
        },
        "hooks",
    ),
    "batch size: a sum over the batch": (
        "batch size",
        {"FORWARD": "terms['hint'] = hint * len(batch.labels)"},
        "name the term in follows_batch",
    ),
    "batch size: a declaration that does not hold": (
        "batch size",
        {"CLASS": "follows_batch = {'hint'}"},
        "take it out of follows_batch",
    ),
    "batch size: a term that is none": (
        "batch size",
        {"CLASS": "follows_batch = {'hin'}"},
        "names 'hin', the terms are",
    ),
    "ranges: a temperature of 0": (
        "ranges",
        {
            "SETTING": "soft_temperature: float = 1.0",
            "FORWARD": "terms['ce'] = ce * self.s",
            "INIT": "self.s = soft_temperature",
        },
        "Annotated[float, Range(above=0)]",
    ),
    "ranges: a negative weight": (
        "ranges",
        {"SETTING": "ce_weight: float = 1.0", "FORWARD": "terms['ce'] = ce * self.s", "INIT": "self.s = ce_weight"},
        "Annotated[float, Range(at_least=0)]",
    ),
    "ranges: a stage that is none": (
        "ranges",
        {
            "SETTING": "stages: tuple[int, ...] = (1, 2)",
            "INIT": "self.s = stages",
            "FORWARD": "terms['ce'] = ce * sum(self.s)",
        },
        "stage_numbers(",
    ),
    "settings: a switch that does nothing": (
        "settings",
        {"SETTING": "sharp: bool = True"},
        "sharp makes no difference",
    ),
    "settings: one that does nothing": ("settings", {"SETTING": "gamma: float = 0.3"}, "gamma makes no difference"),
    "settings: one that takes its default only": (
        "settings",
        {"SETTING": "depth: int = 3", "INIT": "if depth != 3:\n    raise ValueError(depth)"},
        "no value of depth",
    ),
}


FIRST = {check: case for case, (check, _, _) in reversed(UNSOUND.items())}.values()


@pytest.mark.parametrize(
    "case", [case if case in FIRST else pytest.param(case, marks=pytest.mark.slow) for case in UNSOUND]
)
def test_what_a_method_does_wrong_is_found_and_said_in_one_sentence(
    case: str, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, parts, words = UNSOUND[case]
    # Of the checks of a method that builds and steps, which take seconds, the one at issue.
    monkeypatch.setattr(inspector, "ON_SOME_PAIRS", [row for row in inspector.ON_SOME_PAIRS if row[0] == check])
    for other in {"ranges", "settings"} - {check}:
        monkeypatch.setattr(inspector, other, lambda *arguments: ())
    hashes = teacher_hashes()
    failures = failures_of(write(**parts), THREE[:1])
    found = [failure for failure in failures if failure.check == check]
    assert found, [str(failure) for failure in failures]
    assert any(words in failure.advice for failure in found), [str(failure) for failure in found]
    for failure in failures:
        assert failure.check in CHECKS
        assert "\n" not in str(failure)
        assert len(str(failure)) < 450
    assert teacher_hashes() == hashes  # whatever it did, the next method finds the bench as it was
    assert torch.get_num_threads() == 1


def test_there_is_an_unsound_method_for_every_check() -> None:
    assert {check for check, _, _ in UNSOUND.values()} == set(CHECKS)


# What is unusual but sound


SOUND = {
    "a sum over the batch that is declared": {
        "CLASS": "follows_batch = {'hint'}",
        "FORWARD": "terms['hint'] = hint * len(batch.labels)",
    },
    "a ramp over many epochs": {
        "SETTING": "warmup_epochs: int = 0",
        "INIT": "self.w = warmup_epochs",
        "FORWARD": "terms['hint'] = hint * (min((batch.epoch + 1) / self.w, 1.0) if self.w else 1.0)",
    },
    "a name out of a few": {
        "TOP": "from typing import Literal",
        "SETTING": "mode: Literal['sum', 'half'] = 'sum'",
        "INIT": "self.mode = mode",
        "FORWARD": "terms['hint'] = hint * (1.0 if self.mode == 'sum' else 0.5)",
    },
    "None as a default": {
        "SETTING": "margin: float | None = None",
        "INIT": "self.margin = margin",
        "FORWARD": "terms['hint'] = hint if self.margin is None else hint + self.margin",
    },
    "draws from the default generator": {
        "FORWARD": "terms['noise'] = (student.logits * torch.rand_like(student.logits)).square().mean()"
    },
    "one value besides the default": {
        "SETTING": "heads: int = 4",
        "INIT": "if heads not in (4, 8):\n    raise ValueError(heads)\nself.heads = heads",
        "FORWARD": "terms['hint'] = hint * self.heads",
    },
    "frozen parameters": {"INIT": "self.fixed = nn.Linear(2, 2).requires_grad_(False)"},
    "a bank, changed out of the graph": {
        "INIT": "self.register_buffer('bank', torch.zeros(task.num_train, task.num_classes))",
        "FORWARD": "self.bank[batch.index] = student.logits.detach().float()\nterms['b'] = 0.1 * self.bank.mean()",
    },
}


@pytest.mark.parametrize("case", few(SOUND, 2))
def test_what_is_unusual_but_sound_passes(case: str, write) -> None:
    assert [str(failure) for failure in failures_of(write(**SOUND[case]), THREE[:1])] == []


ONLY_CNN = """
@classmethod
def supports(cls, student, teacher):
    return 'students must be CNNs' if student.has_tokens else None
"""


def test_a_pair_that_supports_refuses_is_left_out_with_its_reason(write) -> None:
    entry = catalog([str(write(CLASS=ONLY_CNN))])["mine"]
    found = examine(entry, pairs=THREE)
    assert found.failures == []
    assert found.skips == [Skip("mine", str(pair), "students must be CNNs") for pair in (THREE[0], THREE[2])]


def test_a_method_that_refuses_every_pair_fails(write) -> None:
    supports = "@classmethod\ndef supports(cls, student, teacher):\n    return 'no'"
    (failure,) = failures_of(write(CLASS=supports))
    assert "at least one" in failure.advice


def test_one_finding_on_several_pairs_is_one_failure(write) -> None:
    failures = failures_of(write(INIT="self.unused = nn.Parameter(torch.zeros(2))"))
    (failure,) = failures
    assert failure.where == tuple(map(str, THREE))


def test_the_bench_gives_both_nets_other_shapes() -> None:
    for pair in PAIRS:
        student, teacher = net_info(pair.student, False), net_info(pair.teacher, True)
        assert (student.family, teacher.family) == (pair.student, pair.teacher)
        assert student.embedding_dim != teacher.embedding_dim
        for info in (student, teacher):
            assert min(info.stages[-1].height, info.stages[-1].width) > 1
            assert info.stagewise
            assert info.linear_classifier


def test_trials_start_from_the_same_student_whatever_was_trained_before() -> None:
    cls = BUILT_IN["kd"].load()
    first = Trial(cls, THREE[0])
    losses = [first.step(sample())["kd"] for _ in range(3)]
    assert losses[2] != losses[0]
    torch.testing.assert_close(Trial(cls, THREE[0]).step(sample())["kd"], losses[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("default", "annotation"),
    [
        (1.0, "float"),
        (3, "int"),
        (True, "bool"),
        ((1, 2), "tuple[int, ...]"),
        (None, "float | None"),
        ("a", "Literal['a', 'b']"),
    ],
)
def test_other_values_differ_from_the_default_and_from_each_other(default, annotation) -> None:
    values = list(_others(BUILT_IN["kd"].load(), THREE[0], Hyperparameter("x", default, annotation)))
    assert values
    assert default not in [value for value in values if type(value) is type(default)]


def test_examine_tells_its_progress_and_time(write) -> None:
    seen: list[str] = []
    found = examine(catalog([str(write())])["mine"], seen.append, THREE[:1])
    assert set(seen) <= set(CHECKS)
    assert {"import", "terms", "settings"} <= set(seen)
    assert found.seconds > 0
    assert dataclasses.asdict(found)["method"] == "mine"


# The command


@pytest.fixture
def one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command tries methods on one kind of pair, not on all nine."""
    monkeypatch.setattr(bench, "PAIRS", THREE[:1])


@pytest.mark.slow
def test_the_command_says_what_failed_and_goes_on_with_the_next_method(write, capsys) -> None:
    files = [
        write("broken", TOP="raise RuntimeError('boom')"),
        write("leaky", FORWARD="teacher.logits.mul_(2)"),
        write("fine"),
    ]
    status = parser.main(
        ["test", "broken", "leaky", "fine", *(word for file in files for word in ("--plugin", str(file)))]
    )
    out = capsys.readouterr().out
    assert status == 1
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines if line and not line.startswith(" ")][:3] == [
        ["broken", "FAILED"], ["leaky", "FAILED"], ["fine", "ok"],
    ]  # fmt: skip
    assert "boom" in out
    assert "1 of 3 methods pass" in out
    assert "Traceback" not in out


def test_the_command_takes_globs_and_a_plugins_own_methods(write, capsys, one_pair) -> None:
    assert parser.main(["test", "scr*"]) == 0
    assert "scratch  ok" in capsys.readouterr().out
    assert parser.main(["test", "--plugin", str(write("own"))]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 methods pass" in out
    assert "own  ok" in out


def test_a_plugin_that_does_not_parse_does_not_stop_the_others(tmp_path, write, capsys, one_pair) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def (:\n")
    assert parser.main(["test", "--plugin", str(bad), "--plugin", str(write("fine"))]) == 1
    seen = capsys.readouterr()
    assert "fine  ok" in seen.out
    assert "bad.py, line 1" in seen.err


@pytest.mark.parametrize("arguments", [["test", "kdd"], ["test", "--plugin", "missing.py"], ["test", "--plugins", "x"]])
def test_a_wrong_request_is_one_line_and_status_2(arguments, capsys) -> None:
    try:
        status = parser.main(arguments)
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_pairs_left_out_are_shown_at_the_end_with_the_reason(write, capsys) -> None:
    assert parser.main(["test", "--plugin", str(write(CLASS=ONLY_CNN))]) == 0
    out = capsys.readouterr().out
    assert "6 pairs left out" in out
    assert "students must be CNNs" in out
