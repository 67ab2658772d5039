"""Five training steps of every method on three kinds of pair give the losses that are stored.

They are stored with the code as it was when its formulas had been checked elsewhere (golden values, transcriptions), and
are no proof of those: they show that a change which should not change numbers does not. After a change that should, raise
the method's ``version`` and store them anew:

    python tests/methods/test_trajectories.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.engine.optim import Schedule, build_optim_wrapper
from kdbench.engine.teacher import freeze
from kdbench.method import Batch, Outputs, Task
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.registry import catalog
from kdbench.seeding import RandomStream
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import OptimizerSpec, Recipe, ScheduleSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "trajectories.json"
STEPS, BATCH, CLASSES, SAMPLES = 5, 8, 7, 48
#: Everything is in double precision, the drawing of initial values included: in single precision these differ by 1e-7
#: between processors, which five steps can make 1e-3 of.
RTOL = 1e-6

NETS = {
    "cnn": NetSpec(
        timm="resnet_32px_small",
        family="cnn",
        args={"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_width": 8, "stem_stride": 2},
        memory_format="channels_last",
    ),
    "vit": NetSpec(timm="vit_32px_small", family="vit", args={"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}),
    "mlp": NetSpec(timm="mixer_32px_small", family="mlp", args={"patch_size": 8, "embed_dim": 20, "num_blocks": 4}),
}  # fmt: skip
PAIRS = ("cnn -> vit", "vit -> mlp", "mlp -> cnn")
#: Smaller than by default, for speed.
SETTINGS: dict[str, dict[str, Any]] = {
    "crd": {"num_negatives": 64, "dim": 16},
    "fofa": {"queries": 16, "dim": 32, "heads": 2},
    "tas": {"dim": 16},
    "lfcc": {"dim": 16, "stages": (1, 2, 3, 4)},
}
METHODS = catalog()


def pairs_of(name: str) -> tuple[str, ...]:
    """The kinds of pair that a method is tried on."""
    return ("vit -> vit",) if "attention" in METHODS[name].needs else PAIRS


def net(family: str, seed: int) -> TappedNet:
    torch.manual_seed(seed)
    built = TappedNet(NETS[family], CLASSES).double()
    classifier: Any = built.classifier
    torch.nn.init.normal_(classifier.weight, std=0.2)  # zero in timm's MLPs
    return built.double()


def trajectory(name: str, pair: str) -> dict[str, list[float]]:
    """Each loss term over the steps, in double precision on one thread."""
    torch.set_default_dtype(torch.float64)
    try:
        return _trajectory(name, pair)
    finally:
        torch.set_default_dtype(torch.float32)


def _trajectory(name: str, pair: str) -> dict[str, list[float]]:
    teacher_family, student_family = pair.split(" -> ")
    with torch.random.fork_rng(devices=[]):
        teacher, student = freeze(net(teacher_family, 1)), net(student_family, 2).train()
        torch.manual_seed(3)
        images = torch.rand(SAMPLES, 3, 32, 32).double()
        labels = torch.randint(CLASSES, (SAMPLES,))
        method: Any = METHODS[name].load()
        task = Task(CLASSES, SAMPLES, labels, "golden", STEPS)
        method = method(student.describe(), teacher.describe(), task, **SETTINGS.get(name, {})).double()
    recipe = Recipe(
        epochs=STEPS,
        batch_size=BATCH,
        # not Adam, which makes steps of full length out of gradients that are only rounding
        optimizer=OptimizerSpec(name="sgd", lr=0.1, weight_decay=1e-3),
        schedule=ScheduleSpec(name="constant"),
        clip_norm=1.0,
    )
    optimizer = build_optim_wrapper(student.net, method, recipe)
    schedule = Schedule(optimizer.optimizer, recipe, 1, method.phases)
    needs = frozenset(method.needs)

    def outputs(which: TappedNet, batch: torch.Tensor) -> Outputs:
        found = which(batch, needs)
        found.strong = which(batch.flip(3), needs) if "strong" in needs else None
        return found

    stream = RandomStream(4)
    course: dict[str, list[float]] = {}
    for step in range(STEPS):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH)
        hard = torch.nn.functional.one_hot(labels[rows], CLASSES).double()
        targets = 0.7 * hard + 0.3 * hard.flip(0) if step == STEPS - 1 else None  # the last as after mixup
        batch = Batch(labels[rows], rows, targets, step / STEPS, step, label_smoothing=0.1)
        schedule.set(step, 0)
        with stream.active():
            with torch.no_grad():
                taught = outputs(teacher, images[rows])
            terms = method(batch, outputs(student, images[rows]), taught if method.uses_teacher else None)
            optimizer.update_params(sum(terms.values()))
        for key, term in terms.items():
            course.setdefault(key, []).append(float(term.detach()))
    return course


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def test_every_method_has_stored_losses_and_no_other_has(golden) -> None:
    assert sorted(golden) == sorted(METHODS)


#: Each method on one kind of pair, the kinds in turn; on the others by name.
CASES = [
    pytest.param(name, pair, marks=[] if place == number % len(pairs) else [pytest.mark.slow])
    for number, (name, pairs) in enumerate((name, pairs_of(name)) for name in METHODS)
    for place, pair in enumerate(pairs)
]


@pytest.mark.parametrize(("name", "pair"), CASES)
def test_five_steps_give_the_stored_losses(name: str, pair: str, golden) -> None:
    found, stored = trajectory(name, pair), golden[name][pair]
    assert list(found) == list(stored), f"{name}, {pair}"
    for step in range(STEPS):
        total = sum(abs(values[step]) for values in stored.values())
        for key, values in stored.items():
            close = math.isclose(found[key][step], values[step], rel_tol=RTOL, abs_tol=1e-7 * total)
            assert close, f"{name}, {pair}, step {step + 1}: {key} is {found[key][step]!r}, stored {values[step]!r}"


def test_a_small_change_of_a_hyper_parameter_is_seen(golden, monkeypatch) -> None:
    monkeypatch.setitem(SETTINGS, "kd", {"temperature": 1.01})
    with pytest.raises(AssertionError, match="kd, cnn -> vit, step 1: kd is"):
        test_five_steps_give_the_stored_losses("kd", "cnn -> vit", golden)


def store() -> None:
    torch.set_num_threads(1)
    found = {
        name: {
            pair: {key: [float(f"{value:.9g}") for value in values] for key, values in trajectory(name, pair).items()}
            for pair in pairs_of(name)
        }
        for name in sorted(METHODS)
    }
    text = json.dumps(found, indent=1).replace("[\n    ", "[").replace(",\n    ", ", ").replace("\n   ]", "]")
    GOLDEN.write_text(text + "\n")  # a trajectory on a line


if __name__ == "__main__":
    store()
