"""RLD, TTM, WTTM, SD-KD, SD-DKD, BKD and CTKD: their formulas in NumPy, theory, and what goes wrong in them elsewhere."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench import Batch, Feature, NetInfo, Outputs, StageInfo, Task
from kdbench.engine.optim import build_optim_wrapper
from kdbench.errors import HyperparameterError
from kdbench.methods.bkd import BKD, bkd_loss
from kdbench.methods.ctkd import CTKD, ctkd_loss, ctkd_schedule
from kdbench.methods.dkd import dkd_loss
from kdbench.methods.kd import kd_loss
from kdbench.methods.rld import RLD, rld_loss, rld_terms
from kdbench.methods.sdd import SDDKD, SDKD, sdd_kd_loss, sdd_loss
from kdbench.methods.ttm import TTM, WTTM, ttm_loss, wttm_loss
from kdbench.plugins.registry import catalog
from kdbench.suite.recipe import OptimizerSpec, Recipe, ScheduleSpec

torch.set_num_threads(1)

METHODS = (RLD, TTM, WTTM, SDKD, SDDKD, BKD, CTKD)
CLASSES = 7
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
CATALOG = catalog()


def net(family, width, grid, class_tokens=0, **fields):
    layout = "map" if family == "cnn" else "tokens"
    stages = (StageInfo(width, grid, grid, layout, class_tokens),) * 4
    return NetInfo(family, family, stages, **{"embedding_dim": width, "num_classes": CLASSES, **fields})


STUDENTS = {"cnn": net("cnn", 9, 2), "vit": net("vit", 12, 4, 1), "mlp": net("mlp", 10, 7)}
TEACHERS = {"cnn": net("cnn", 16, 8), "vit": net("vit", 14, 8, 2), "mlp": net("mlp", 11, 4)}


def build(method, student="cnn", teacher="vit", **hyperparameters):
    task = Task(CLASSES, 20, torch.arange(20) % CLASSES)
    return method(STUDENTS[student], TEACHERS[teacher], task, **hyperparameters)


def draw(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(batch=6, classes=CLASSES):
    return (torch.arange(batch) * 3 + 1) % classes


def batch_of(size=6, **fields):
    return Batch(labels=labels(size), index=torch.arange(size), **fields)


def outputs_of(info, size=6, seed=0):
    """Outputs of a net with a linear classifier; the embedding of a ViT is not its map's mean, as in life."""
    stage = info.stages[-1]
    value = draw(size, stage.channels, stage.height, stage.width, seed=seed).float().requires_grad_()
    embedding = value.mean(dim=(2, 3))
    if stage.class_tokens:
        embedding = F.layer_norm(embedding + draw(size, stage.channels, seed=seed + 1).float(), (stage.channels,))
    torch.manual_seed(seed)
    classifier = nn.Linear(info.embedding_dim, info.num_classes)
    return Outputs(classifier(embedding), [Feature(value, None, stage.layout)] * 4, embedding, classifier)


def gradient(function, student):
    student = student.detach().clone().requires_grad_()
    value = function(student)
    value.backward()
    return value.detach(), student.grad


# NumPy transcriptions, one sample at a time.


def softmax(row):
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def numpy_kd(zs, zt, y, temperature):
    return temperature**2 * kl(softmax(zt / temperature), softmax(zs / temperature))


def numpy_dkd(zs, zt, y, alpha, beta, temperature):
    ps, pt = softmax(zs / temperature), softmax(zt / temperature)
    others = [np.delete(z, y) / temperature for z in (zt, zs)]
    return temperature**2 * (alpha * kl([pt[y], 1 - pt[y]], [ps[y], 1 - ps[y]]) + beta * kl(*map(softmax, others)))


def numpy_rld(zs, zt, y, alpha, beta, temperature, label_temperature):
    p, best = softmax(zs / label_temperature)[y], max(softmax(zt / label_temperature))
    kept = [c for c in range(len(zt)) if zt[c] < zt[y]]
    masked = kl(softmax(zt[kept] / temperature), softmax(zs[kept] / temperature)) if kept else 0.0
    return alpha * label_temperature**2 * kl([best, 1 - best], [p, 1 - p]) + beta * temperature**2 * masked


def numpy_ttm(zs, zt, y, gamma, weighted):
    powers = np.array(softmax(zt)) ** gamma
    return (powers.sum() if weighted else 1.0) * kl(powers / powers.sum(), softmax(zs))


def numpy_bkd(zs, zt, y):
    return np.mean([math.log1p(math.exp(z)) - p * z for z, p in zip(zs, softmax(zt), strict=True)])


def numpy_pool(value, size):
    """Adaptive average pooling: cell i spans floor(i h / size) to ceil((i + 1) h / size)."""
    height, width = value.shape[1:]
    rows, columns = ([(i * n // size, -(-(i + 1) * n // size)) for i in range(size)] for n in (height, width))
    return np.array([[value[:, a:b, c:d].mean((1, 2)) for c, d in columns] for a, b in rows]).transpose(2, 0, 1)


def numpy_sdd(student, teacher, target, scales, row_loss):
    total = count = 0
    for map_s, map_t, y in zip(student, teacher, target, strict=True):
        grids = [
            [numpy_pool(numpy_pool(value, 4), size).reshape(len(value), -1).T for size in scales]
            for value in (map_s, map_t)
        ]
        cells_s, cells_t = (np.concatenate(grid) for grid in grids)
        right = cells_t.argmax(1) == y
        total += sum((1 + (r != right[0])) * row_loss(s, t, y) for s, t, r in zip(cells_s, cells_t, right, strict=True))
        count += len(right)
    return total / count


#: name -> (loss of (student, teacher, target), its transcription for one sample)
LOSSES = {
    "rld": (lambda s, t, y: rld_loss(s, t, y, 1.0, 8.0, 4.0, 4.0), lambda *z: numpy_rld(*z, 1.0, 8.0, 4.0, 4.0)),
    "rld, two T": (lambda s, t, y: rld_loss(s, t, y, 0.7, 2.0, 0.5, 3.0), lambda *z: numpy_rld(*z, 0.7, 2.0, 0.5, 3.0)),
    "ttm": (lambda s, t, y: ttm_loss(s, t, 0.1), lambda *z: numpy_ttm(*z, 0.1, False)),
    "wttm": (lambda s, t, y: wttm_loss(s, t, 0.2), lambda *z: numpy_ttm(*z, 0.2, True)),
    "bkd": (lambda s, t, y: bkd_loss(s, t), numpy_bkd),
    "ctkd": (
        lambda s, t, y: ctkd_loss(s, torch.zeros(1, dtype=torch.float64), t, -1.0, 1.0, 6.0),
        lambda *z: numpy_kd(*z, 4.0),
    ),
}  # fmt: skip
#: name -> (loss of class maps and target, loss of one cell, scales)
MAP_LOSSES = {
    "sd-dkd": (lambda s, t, y: sdd_loss(s, t, y, 1.0, 8.0, 4.0, [1, 2, 4]), lambda *z: numpy_dkd(*z, 1.0, 8.0, 4.0), (1, 2, 4)),
    "sd-dkd, T = 1": (lambda s, t, y: sdd_loss(s, t, y, 0.5, 2.0, 1.0, (1, 2)), lambda *z: numpy_dkd(*z, 0.5, 2.0, 1.0), (1, 2)),
    "sd-kd": (lambda s, t, y: sdd_kd_loss(s, t, y, 4.0, (1, 2, 4)), lambda *z: numpy_kd(*z, 4.0), (1, 2, 4)),
}  # fmt: skip
EVERY_LOSS = {name: loss for name, (loss, *_) in (*LOSSES.items(), *MAP_LOSSES.items())}


def inputs_of(name, batch=6, classes=CLASSES, dtype=torch.float64):
    """Student, teacher and target for a loss: logits, or class maps of 3 x 5 and 7 x 7."""
    grids = ((3, 5), (7, 7)) if name in MAP_LOSSES else ((), ())
    student, teacher = (draw(batch, classes, *grid, seed=seed).to(dtype) for seed, grid in enumerate(grids, 1))
    return student, teacher, labels(batch, classes)


@pytest.mark.parametrize(("batch", "classes"), [(6, 7), (5, 3), (2, 2), (1, 10), (3, 100)])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_its_formula_written_in_numpy(name, batch, classes):
    loss, expected = LOSSES[name]
    student, teacher, target = inputs_of(name, batch, classes)
    rows = zip(student.numpy(), teacher.numpy(), target.numpy(), strict=True)
    assert loss(student, teacher, target).item() == pytest.approx(np.mean([expected(*row) for row in rows]), rel=1e-10)


@pytest.mark.parametrize("grids", [((4, 4), (4, 4)), ((8, 8), (7, 7)), ((1, 1), (14, 14)), ((3, 5), (6, 2))], ids=str)
@pytest.mark.parametrize("name", MAP_LOSSES)
def test_loss_of_class_maps_equals_its_formula_written_in_numpy(name, grids):
    loss, row_loss, scales = MAP_LOSSES[name]
    student, teacher = (draw(5, 6, *grid, seed=seed, scale=3.0) for seed, grid in enumerate(grids))
    target = teacher.mean((2, 3)).argmax(1)  # so that single cells are right and others wrong
    target[0] = (target[0] + 1) % 6
    expected = numpy_sdd(student.numpy(), teacher.numpy(), target.numpy(), scales, row_loss)
    assert loss(student, teacher, target).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_gradient_of_loss_is_that_of_its_finite_differences(name):
    student, teacher, target = inputs_of(name, batch=3, classes=4)
    assert torch.autograd.gradcheck(lambda value: EVERY_LOSS[name](value, teacher, target), student.requires_grad_())


@pytest.mark.parametrize("where", ["at the label", "at another class"])
@pytest.mark.parametrize("gap", [120.0, 1000.0])
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_student_logit_far_above_the_rest_gives_the_loss_and_gradient_of_double_precision(name, gap, where):
    student, teacher, target = inputs_of(name)
    peak = F.one_hot(target if where == "at the label" else (target + 1) % CLASSES, CLASSES).double()
    student = student + gap * (peak[..., None, None] if student.ndim == 4 else peak)
    expected, expected_slope = gradient(lambda value: EVERY_LOSS[name](value, teacher, target), student)
    value, slope = gradient(lambda value: EVERY_LOSS[name](value, teacher.float(), target), student.float())
    assert expected.isfinite()
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_half_precision_gives_the_loss_of_the_same_numbers_in_full_precision(name, dtype):
    student, teacher, target = inputs_of(name, dtype=dtype)
    expected, expected_slope = gradient(
        lambda value: EVERY_LOSS[name](value, teacher.double(), target), student.double()
    )
    value, slope = gradient(lambda value: EVERY_LOSS[name](value, teacher, target), student)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", sorted(set(EVERY_LOSS) - {"rld", "rld, two T", "ttm", "wttm", "bkd"}))
def test_student_equal_to_teacher_has_zero_loss_and_zero_gradient(name):
    _, teacher, target = inputs_of(name)
    value, slope = gradient(lambda student: EVERY_LOSS[name](student, teacher, target), teacher)
    assert value.abs() < 1e-12
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("shift", [-5000.0, 3.0, 5000.0])
@pytest.mark.parametrize("name", sorted(set(EVERY_LOSS) - {"bkd"}))
def test_constant_added_to_the_logits_changes_nothing(name, shift):
    student, teacher, target = inputs_of(name)
    shifted = EVERY_LOSS[name](student + shift, teacher - shift, target)
    torch.testing.assert_close(shifted, EVERY_LOSS[name](student, teacher, target), rtol=1e-9, atol=1e-10)


# RLD


def test_rld_compares_the_students_label_with_the_best_class_of_the_teacher_even_where_that_is_wrong():
    teacher = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    student = teacher.roll(1, dims=1)  # as sure of class 1 as the teacher is of class 0
    confidence, _ = rld_terms(student, teacher, torch.tensor([1]), 1.0, 2.0)
    assert confidence.abs() < 1e-14


def test_rld_leaves_out_the_label_and_all_that_ties_with_it_or_lies_above():
    student, teacher = draw(1, 6, seed=1), torch.tensor([[5.0, 2.0, 2.0, 1.0, -3.0, 0.5]], dtype=torch.float64)
    value, slope = gradient(lambda z: rld_terms(z, teacher, torch.tensor([1]), 2.0, 1.0)[1], student)
    assert value.item() == pytest.approx(4 * kl(*(softmax(z[0, 3:] / 2) for z in (teacher, student))), rel=1e-12)
    assert (slope[0] != 0).tolist() == [False, False, False, True, True, True]


def test_rld_mask_is_that_of_the_logits_before_the_temperature():
    label = torch.tensor(3.9999995)
    teacher = torch.stack([label, label.nextafter(torch.tensor(0.0)), torch.tensor(1.0)])[None]
    assert teacher[0, 1] < teacher[0, 0]
    assert (teacher[0, 1] / 3.9) == (teacher[0, 0] / 3.9)
    _, slope = gradient(lambda z: rld_terms(z, teacher, torch.tensor([0]), 3.9, 1.0)[1], draw(1, 3).float())
    assert (slope[0] != 0).tolist() == [False, True, True]


@pytest.mark.parametrize("below", [0, 1])
def test_rld_with_fewer_than_two_classes_below_the_label_adds_zero_and_counts_in_the_batch(below):
    student, teacher = draw(2, CLASSES, seed=1), draw(2, CLASSES, seed=2)
    target = teacher.argsort(dim=1)[:, below].clone()
    target[1] = teacher[1].argmax()
    value, slope = gradient(lambda z: rld_terms(z, teacher, target, 2.0, 1.0)[1], student)
    alone = rld_terms(student[1:], teacher[1:], target[1:], 2.0, 1.0)[1]
    assert value.item() == pytest.approx(alone.item() / 2, rel=1e-12)
    assert slope[0].abs().max() == 0
    assert slope.isfinite().all()


def test_rld_takes_the_temperature_for_its_label_unless_another_is_set():
    student, teacher = Outputs(draw(6, CLASSES)), Outputs(draw(6, CLASSES, seed=1))
    terms = {
        t: build(RLD, temperature=2.0, label_temperature=t)(batch_of(), student, teacher) for t in (None, 2.0, 1.0)
    }
    assert terms[None] == terms[2.0]
    assert terms[None]["confidence"] != terms[1.0]["confidence"]
    assert terms[None]["correlation"] == terms[1.0]["correlation"]


# TTM and WTTM


@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_power_of_one_is_kd_at_temperature_one(loss):
    student, teacher = draw(6, CLASSES, seed=1), draw(6, CLASSES, seed=2)
    torch.testing.assert_close(loss(student, teacher, 1.0), kd_loss(student, teacher, 1.0))


def test_ttm_target_is_the_teacher_at_the_inverse_temperature():
    teacher = draw(6, CLASSES, seed=2)
    value, slope = gradient(lambda student: ttm_loss(student, teacher, 0.25), 0.25 * teacher)
    assert value.abs() < 1e-14
    assert slope.abs().max() < 1e-14


@pytest.mark.parametrize(
    ("teacher", "factor"), [(torch.zeros(1, CLASSES), CLASSES**0.9), (100 * torch.eye(CLASSES)[:1], 1.0)]
)
def test_wttm_weighs_an_unsure_teacher_by_c_to_the_one_minus_gamma_and_a_sure_one_by_one(teacher, factor):
    student = draw(1, CLASSES)
    ratio = wttm_loss(student, teacher.double(), 0.1) / ttm_loss(student, teacher.double(), 0.1)
    assert ratio.item() == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_power_raises_the_tail_of_probabilities_that_round_to_zero(loss):
    teacher = torch.tensor([[0.0, -150.0, -300.0]])
    assert (teacher.softmax(1)[0, 1:] == 0).all()
    student = draw(1, 3)
    torch.testing.assert_close(loss(student.float(), teacher, 0.01).double(), loss(student, teacher.double(), 0.01))


# SDD


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (2, 3)], ids=str)
def test_equal_cells_give_the_loss_of_one(grid):
    student, teacher, target = draw(6, CLASSES, seed=1), draw(6, CLASSES, seed=2), labels()
    maps = [z[..., None, None].expand(*z.shape, *grid) for z in (student, teacher)]
    for scales in ((1,), (1, 2), (1, 2, 4)):
        expected = dkd_loss(student, teacher, target, 1.0, 8.0, 4.0)
        torch.testing.assert_close(sdd_loss(*maps, target, 1.0, 8.0, 4.0, scales), expected)
        torch.testing.assert_close(sdd_kd_loss(*maps, target, 4.0, scales), kd_loss(student, teacher, 4.0))


def test_a_cell_counts_twice_where_the_teacher_is_right_in_it_and_wrong_in_all_or_the_other_way_round():
    teacher = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    teacher[0, 0], teacher[0, 1, :2, :2] = 1.0, 3.0  # class 0 but for the upper left quarter, where it is class 1
    student = draw(1, 3, 4, 4)
    pooled = [F.adaptive_avg_pool2d(z, 2).flatten(2)[0].T for z in (student, teacher)]
    whole = kd_loss(student.mean((2, 3)), teacher.mean((2, 3)), 1.0)
    quarters = [kd_loss(s[None], t[None], 1.0) for s, t in zip(*pooled, strict=True)]
    for label, weights in ((0, (2, 1, 1, 1)), (1, (2, 1, 1, 1)), (2, (1, 1, 1, 1))):
        expected = (whole + sum(w * quarter for w, quarter in zip(weights, quarters, strict=True))) / 5
        torch.testing.assert_close(sdd_kd_loss(student, teacher, torch.tensor([label]), 1.0, (1, 2)), expected)


@pytest.mark.parametrize("family", TEACHERS)
def test_class_map_is_the_classifier_at_every_position_and_its_mean_the_logits(family):
    for method in (SDKD, SDDKD):
        outputs = outputs_of(TEACHERS[family])
        class_map = build(method, teacher=family).class_map(outputs)
        assert class_map.shape == (6, CLASSES, 4, 4)
        if family != "vit":
            value = outputs.stages[-1].map
            at_every_position = outputs.classifier(value.movedim(1, -1)).movedim(-1, 1)
            torch.testing.assert_close(class_map, F.adaptive_avg_pool2d(at_every_position, 4), rtol=1e-4, atol=1e-5)
        if outputs.stages[-1].map.shape[2] % 4 == 0:
            torch.testing.assert_close(class_map.mean((2, 3)), outputs.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [SDKD, SDDKD])
def test_net_without_class_maps_is_refused_with_a_reason(method):
    assert "not one linear layer" in method.supports(STUDENTS["cnn"], net("cnn", 16, 8, linear_classifier=False))
    assert "20 channels" in method.supports(net("cnn", 20, 8, embedding_dim=32), TEACHERS["vit"])


@pytest.mark.parametrize("scales", [(), (2, 4), (4, 2, 1), (1, 2, 2)])
def test_scales_without_the_global_cell_in_front_or_with_one_twice_are_refused(scales):
    with pytest.raises(HyperparameterError, match="must begin with 1"):
        build(SDKD, scales=scales)


# BKD


def test_bkd_is_least_where_the_sigmoids_are_the_teachers_probabilities():
    probabilities = draw(6, CLASSES).softmax(1)
    value, slope = gradient(lambda student: bkd_loss(student, probabilities.log()), probabilities.logit())
    entropy = -(probabilities * probabilities.log() + (1 - probabilities) * (1 - probabilities).log()).mean()
    assert slope.abs().max() < 1e-15
    assert value.item() == pytest.approx(entropy.item(), rel=1e-12)


# CTKD


def test_ctkd_schedule_is_that_of_the_official_code():
    for epoch, epochs, expected in GOLDEN["ctkd_schedule"]:
        assert ctkd_schedule(epoch, epochs) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reversal", [0.0, -0.3, -1.0, 1.0])
def test_ctkd_reverses_the_gradient_of_theta_alone(reversal):
    student, teacher = draw(6, CLASSES, seed=1).requires_grad_(), draw(6, CLASSES, seed=2)
    theta = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    loss = ctkd_loss(student, theta, teacher, reversal, 1.0, 20.0)
    by_student, by_theta = torch.autograd.grad(loss, (student, theta))
    temperature = 1 + 20 / (1 + math.exp(-0.7))
    value, slope = gradient(lambda z: kd_loss(z, teacher, temperature), student)
    torch.testing.assert_close(loss.detach(), value)
    torch.testing.assert_close(by_student, slope)
    shifted = [numpy_by_theta(student, teacher, 0.7 + step) for step in (1e-5, -1e-5)]
    assert by_theta.item() == pytest.approx(reversal * (shifted[0] - shifted[1]) / 2e-5, rel=1e-6)


def numpy_by_theta(student, teacher, theta):
    temperature = 1 + 20 / (1 + math.exp(-theta))
    rows = zip(student.detach().numpy(), teacher.numpy(), strict=True)
    return np.mean([numpy_kd(zs, zt, None, temperature) for zs, zt in rows])


def test_ctkd_temperature_is_trained_upwards_in_loss_and_is_not_decayed():
    method = build(CTKD, ce_weight=0.0)
    recipe = Recipe(
        epochs=20,
        batch_size=6,
        optimizer=OptimizerSpec(name="sgd", lr=1.0, weight_decay=0.1),
        schedule=ScheduleSpec(name="constant"),
    )
    optimizer = build_optim_wrapper(nn.Linear(1, 1), method, recipe)
    decays = [
        g["weight_decay"] for g in optimizer.optimizer.param_groups if any(p is method.theta for p in g["params"])
    ]
    assert decays == [0.0]
    student, teacher = Outputs(draw(6, CLASSES)), Outputs(draw(6, CLASSES, seed=1))
    batch = batch_of(epoch=15)
    losses = []
    for _ in range(3):
        loss = method(batch, student, teacher)["kd"]
        optimizer.update_params(loss)
        losses.append(loss.item())
    assert losses == sorted(losses)
    assert losses[2] > losses[0]


def test_ctkd_curriculum_follows_the_epoch_and_a_short_run_does_not_reach_its_end():
    method = build(CTKD, curriculum_epochs=4, kd_weight=1.0)
    slopes = []
    for epoch in range(6):
        loss = method(batch_of(epoch=epoch), Outputs(draw(6, CLASSES)), Outputs(draw(6, CLASSES, seed=1)))["kd"]
        slopes.append(torch.autograd.grad(loss, method.theta)[0].item())
    shares = [slope / slopes[-1] for slope in slopes]
    assert shares == pytest.approx([-ctkd_schedule(epoch, 4) for epoch in (1, 2, 3, 4, 5, 6)], rel=1e-5)
    assert shares[1] < 1
    assert shares[3] == pytest.approx(1.0)


# All of them as methods


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize(("student", "teacher"), list(itertools.product(STUDENTS, TEACHERS)))
@pytest.mark.parametrize("method", METHODS)
def test_method_runs_on_every_pair_and_trains_the_student_but_not_the_teacher(method, student, teacher, size):
    assert method.supports(STUDENTS[student], TEACHERS[teacher]) is None
    ours, theirs = outputs_of(STUDENTS[student], size), outputs_of(TEACHERS[teacher], size, seed=5).detach()
    theirs.classifier.requires_grad_(False)
    terms = build(method, student, teacher)(batch_of(size), ours, theirs)
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(term for name, term in terms.items() if name != "ce").backward()
    assert ours.stages[-1].map.grad.isfinite().all()
    assert ours.stages[-1].map.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in theirs.classifier.parameters())


@pytest.mark.parametrize("method", [RLD, SDKD, SDDKD])
def test_target_after_mixup_is_the_class_with_the_largest_soft_label(method):
    soft = torch.full((6, CLASSES), 0.01)
    soft[torch.arange(6), (labels() + 2) % CLASSES] = 0.9
    student, teacher = outputs_of(STUDENTS["cnn"]), outputs_of(TEACHERS["vit"], seed=5)
    mixed, plain = build(method)(batch_of(targets=soft), student, teacher), build(method)(batch_of(), student, teacher)
    hard = build(method)(Batch((labels() + 2) % CLASSES, torch.arange(6)), student, teacher)
    for term in set(mixed) - {"ce"}:
        torch.testing.assert_close(mixed[term], hard[term])
    assert any(mixed[term] != plain[term] for term in set(mixed) - {"ce"})


@pytest.mark.parametrize("method", [RLD, SDDKD])
def test_warm_up_grows_from_the_first_epoch_and_a_short_run_stays_below_the_full_weight(method):
    student, teacher = outputs_of(STUDENTS["cnn"]), outputs_of(TEACHERS["vit"], seed=5)
    of_epoch = [build(method, warmup_epochs=4)(batch_of(epoch=epoch), student, teacher) for epoch in range(6)]
    full = build(method, warmup_epochs=0)(batch_of(), student, teacher)
    for terms, share in zip(of_epoch, (0.25, 0.5, 0.75, 1.0, 1.0, 1.0), strict=True):
        for name in full:
            torch.testing.assert_close(terms[name], full[name] if name == "ce" else share * full[name])


CIFAR = {
    "rld": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "label_temperature": None, "warmup_epochs": 20},
    "ttm": {"gamma": 0.1, "ttm_weight": 45.0},
    "wttm": {"gamma": 0.2, "wttm_weight": 4.0},
    "sdd-kd": {"temperature": 4.0, "scales": (1, 2, 4), "ce_weight": 0.1, "sdd_weight": 0.9},
    "sdd-dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "scales": (1, 2, 4), "warmup_epochs": 20},
    "bkd": {"bkd_weight": 1.0, "ce_weight": 1.0},
    "ctkd": {"start": 1.0, "end": 20.0, "curriculum_epochs": 10, "ce_weight": 0.1, "kd_weight": 0.9},
}
IMAGENET = {
    "rld": {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "label_temperature": None, "warmup_epochs": 1},
    "sdd-dkd": {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "scales": (1, 2), "warmup_epochs": 1},
    "ctkd": {"start": 1.0, "end": 20.0, "curriculum_epochs": 5, "ce_weight": 1.0, "kd_weight": 1.0},
}


@pytest.mark.parametrize("name", CIFAR)
def test_hyperparameters_on_a_data_set_are_those_of_the_official_code(name):
    entry = CATALOG[name]
    assert entry.fidelity == "reference"
    for dataset in ("cifar100", "cifar100-32", "imagenet1k", "digits"):
        expected = IMAGENET.get(name, CIFAR[name]) if dataset == "imagenet1k" else CIFAR[name]
        resolved = entry.resolve(dataset)
        assert expected.items() <= resolved.items()
        entry.load()(STUDENTS["vit"], TEACHERS["cnn"], Task(CLASSES, 20, torch.arange(20) % CLASSES), **resolved)


@pytest.mark.parametrize("name", CIFAR)
def test_every_number_declares_its_range_and_a_default_lies_in_what_is_searched(name):
    for parameter in CATALOG[name].hyperparameters.values():
        assert parameter.range is not None
        if parameter.range.search:
            low, high = parameter.range.search
            assert low in parameter.range
            assert high in parameter.range
            assert low <= parameter.default <= high
        for value in (-1, math.nan):
            with pytest.raises(HyperparameterError, match=parameter.name):
                parameter.check((value,) if isinstance(parameter.default, tuple) else value, name)


@pytest.mark.parametrize("method", METHODS)
def test_citation_has_what_a_bibliography_needs(method):
    assert set(method.citation) == {"key", "authors", "title", "venue", "year", "arxiv"}
    assert all("," in author for author in method.citation["authors"].split(" and "))
    assert f"{method.citation['venue']} {method.citation['year']} (arXiv:{method.citation['arxiv']})" in " ".join(
        method.__doc__.split()
    )
