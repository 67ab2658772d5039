"""``kdbench test --suite``: methods are tried on a suite's own nets; the contract's classes answer a wrong name with the right ones."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdbench.conformance import bench
from kdbench.method import Batch, Feature, NetInfo, Outputs, StageInfo, Task, attributes_of
from tests.conftest import Said

Kdbench = Callable[..., Said]
CONTRACT = (Task, Batch, NetInfo, StageInfo, Outputs, Feature)
ONLY_NARROW = """
    @classmethod
    def supports(cls, student, teacher):
        return f"{teacher.name} gives {student.embedding_dim}" if student.embedding_dim != 24 else None
"""


def test_a_method_is_tried_on_the_nets_of_a_suite(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    plugin = tmp_path / "narrow.py"
    plugin.write_text(
        "from kdbench import Method, register_method\n\n"
        '@register_method("narrow_test")\nclass Narrow(Method):\n    """A method of the tests."""\n'
        f"{ONLY_NARROW}\n"
        "    def forward(self, batch, student, teacher):\n"
        '        return {"ce": batch.task_loss(student.logits)}\n'
    )
    before = dict(bench.TEACHERS), dict(bench.STUDENTS)
    words = ("test", "narrow_test", "--plugin", plugin, "--suite", write_suite())
    said = kdbench(*words, "--pairs", "cnn--vit,vit--cnn")
    assert (said.status, said.err) == (0, "")
    assert "1 of 1 methods pass all checks" in said.out
    assert re.search(
        r"narrow_test +vit -> cnn +vit teacher gives 16", said.out
    )  # the suite's, not the tiny ones of the checks
    assert "pairs left out" not in kdbench(*words).out  # its default protocol has cnn--vit alone
    assert (dict(bench.TEACHERS), dict(bench.STUDENTS)) == before
    assert bench.net_info("cnn", False).embedding_dim == 24  # tiny again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pairs", "cnn--vit"), "--pairs needs --suite"),
        (("--suite", "SUITE", "--pairs", "cnn--vot"), "unknown pair"),
        (("--suite", "nowhere"), "unknown suite"),
    ],
)
def test_wrong_suites_and_pairs_are_refused(
    kdbench: Kdbench, write_suite: Callable[..., Path], words: tuple[str, ...], message: str
) -> None:
    suite = write_suite()
    said = kdbench("test", "kd", *(suite if word == "SUITE" else word for word in words))
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err


def test_a_net_that_cannot_be_built_is_one_line(kdbench: Kdbench, write_suite: Callable[..., Path]) -> None:
    suite = write_suite(nets={"cnn": {"args": {"layer": [1]}}})
    said = kdbench("test", "kd", "--suite", suite)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "cnn" in said.err


@pytest.mark.usefixtures("forget_plugins")
def test_a_net_of_ones_own_is_tried_too_however_its_file_makes_it(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "own_nets.py"
    file.write_text(
        "import functools\nimport timm\n\nmake = functools.partial(timm.create_model, 'resnet_32px_small')\n"
    )
    suite = write_suite(nets={"own": {"python": "own_nets.py:make"}}, pairs=["cnn--vit", "own--vit"])
    said = kdbench("test", "fitnet", "--suite", suite, "--pairs", "cnn--vit,own--vit", "--plugin", file)
    assert (said.status, said.err) == (0, "")
    assert re.search(r"fitnet +own -> vit +it needs stages; net own teacher has no taps", said.out)


def things() -> dict[type, object]:
    stage = StageInfo(8, 2, 2, "map")
    return {
        Task: Task(10, 5, torch.zeros(5)),
        Batch: Batch(torch.zeros(2), torch.zeros(2)),
        NetInfo: NetInfo("net", "cnn", (stage,) * 4, 8, 10),
        StageInfo: stage,
        Outputs: Outputs(torch.zeros(2, 10)),
        Feature: Feature(torch.zeros(2, 8, 2, 2)),
    }


@pytest.mark.parametrize("cls", CONTRACT)
def test_a_wrong_attribute_is_answered_with_those_that_exist(cls: type) -> None:
    thing = things()[cls]
    with pytest.raises(AttributeError) as caught:
        _ = thing.fearures  # type: ignore[attr-defined]
    assert str(caught.value) == f"{cls.__name__} has no attribute 'fearures'; it has {', '.join(attributes_of(cls))}"
    for name in attributes_of(cls):
        getattr(thing, name)


@pytest.mark.parametrize("cls", CONTRACT)
def test_things_of_the_contract_can_be_copied_and_pickled(cls: type) -> None:
    thing = things()[cls]
    assert type(copy.deepcopy(thing)) is cls
    assert type(pickle.loads(pickle.dumps(thing))) is cls  # noqa: S301 - our own
    assert not hasattr(thing, "nothing")


@pytest.mark.parametrize("cls", CONTRACT)
def test_the_guide_has_every_attribute(cls: type) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text()
    (row,) = re.findall(rf"^\| `{cls.__name__}` \| (.*) \|$", guide, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)", row)) >= set(attributes_of(cls))
