"""UHKD and MSDCRD: what their parts compute, and that they run on every kind of pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from kdbench import Batch, Feature, NetInfo, Outputs, StageInfo, Task
from kdbench.errors import HyperparameterError
from kdbench.methods import msdcrd
from kdbench.methods.msdcrd import MSDCRD, contrast, window_means
from kdbench.methods.uhkd import UHKD, compact_spectrum

CLASSES = 10
METHODS = [UHKD, MSDCRD]
TASK = Task(CLASSES, 100, torch.zeros(100, dtype=torch.int64))


def net(family, widths, grids, class_tokens=0):
    layout = "map" if family == "cnn" else "tokens"
    stages = tuple(StageInfo(w, g, g, layout, class_tokens) for w, g in zip(widths, grids, strict=True))
    return NetInfo(family, family, stages, widths[-1], CLASSES)


STUDENTS = {
    "cnn": net("cnn", (8, 16, 24, 32), (8, 4, 2, 1)),
    "vit": net("vit", (12,) * 4, (4,) * 4, class_tokens=1),
    "mlp": net("mlp", (20,) * 4, (9,) * 4),
}
TEACHERS = {
    "cnn": net("cnn", (16, 32, 48, 64), (16, 8, 4, 2)),
    "vit": net("vit", (32,) * 4, (7,) * 4, class_tokens=2),
    "mlp": net("mlp", (24,) * 4, (3,) * 4),
}


def outputs_of(info, batch=3, trained=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(batch, CLASSES), *((batch, s.channels, s.height, s.width) for s in info.stages)]
    logits, *maps = (torch.randn(*shape, generator=draw).requires_grad_(trained) for shape in shapes)
    return Outputs(logits, [Feature(value, None, s.layout) for value, s in zip(maps, info.stages, strict=True)])


def batch_of(size):
    return Batch(torch.arange(size) % CLASSES, torch.arange(size))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(value):
    return value / value.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("student", "teacher"), list(itertools.product(STUDENTS, TEACHERS)))
@pytest.mark.parametrize("cls", METHODS)
def test_runs_on_every_pair_and_trains_the_student_and_every_parameter(cls, student, teacher, size):
    torch.manual_seed(0)
    method = cls(STUDENTS[student], TEACHERS[teacher], TASK)
    ours, theirs = outputs_of(STUDENTS[student], size), outputs_of(TEACHERS[teacher], size, trained=False, seed=1)
    terms = method(batch_of(size), ours, theirs)
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.grad.isfinite().all(), name
    assert ours.stages[-1].map.grad.abs().sum() > 0


@pytest.mark.parametrize("cls", METHODS)
def test_builds_on_the_meta_device_and_says_that_it_is_a_reconstruction(cls):
    with torch.device("meta"):
        method = cls(STUDENTS["vit"], TEACHERS["cnn"], Task(CLASSES, 100, torch.zeros(100, dtype=torch.int64)))
    assert all(p.is_meta for p in method.parameters())
    assert cls.fidelity == "reconstruction"
    assert "reconstruction" in cls.__doc__


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize(("gap", "dtype"), [(1e3, torch.float32), (1.0, torch.bfloat16)])
def test_logit_gaps_of_a_thousand_and_bfloat16_logits_stay_finite(cls, gap, dtype):
    ours, theirs = outputs_of(STUDENTS["vit"]), outputs_of(TEACHERS["mlp"], trained=False)
    ours.logits = (ours.logits.detach() * gap).to(dtype).requires_grad_()
    theirs.logits = (theirs.logits * gap).to(dtype)
    total = sum(cls(STUDENTS["vit"], TEACHERS["mlp"], TASK)(batch_of(3), ours, theirs).values())
    total.backward()
    assert total.isfinite()
    assert ours.logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (UHKD, {"bins": 0}),
        (UHKD, {"temperature": 0.0}),
        (UHKD, {"stages": (0,)}),
        (MSDCRD, {"temperature": 0.0}),
        (MSDCRD, {"windows": ()}),
        (MSDCRD, {"windows": (7, 0)}),
        (MSDCRD, {"sample_weight": -1.0}),
    ],
)
def test_hyper_parameters_out_of_range_are_refused_by_name(cls, wrong):
    with pytest.raises(HyperparameterError, match=next(iter(wrong))):
        cls(STUDENTS["cnn"], TEACHERS["cnn"], TASK, **wrong)


@pytest.mark.parametrize("cls", METHODS)
def test_the_loss_ignores_the_order_of_the_batch(cls):
    method = cls(STUDENTS["mlp"], TEACHERS["vit"], TASK)
    ours, theirs = outputs_of(STUDENTS["mlp"], 4), outputs_of(TEACHERS["vit"], 4, trained=False)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = [
        Outputs(net.logits[order], [Feature(s.map[order], None, s.layout) for s in net.stages])
        for net in (ours, theirs)
    ]
    labels = batch_of(4).labels[order]
    first = sum(method(batch_of(4), ours, theirs).values())
    torch.testing.assert_close(first, sum(method(Batch(labels, labels), *shuffled).values()))


# --- UHKD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (3, 5), (1, 1)])
def test_the_spectrum_is_that_of_the_definition(height, width):
    value, bins = drawn(2, 6, height, width), 4
    rows, columns = min(bins, height), min(bins, width // 2 + 1)
    block = np.zeros((2, 6, rows, columns))
    y, x = np.mgrid[:height, :width]
    for (i, u), v in itertools.product(enumerate(range(-(rows // 2), rows - rows // 2)), range(columns)):
        wave = np.exp(-2j * np.pi * (u * y / height + v * x / width)) / math.sqrt(height * width)
        block[:, :, i, v] = np.log(1 + np.abs((value.numpy() * wave).sum(axis=(2, 3))))
    block = (block - block.mean(axis=1, keepdims=True)) / np.sqrt(block.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(compact_spectrum(value, bins).numpy(), block, rtol=1e-9, atol=1e-12)


def test_the_spectrum_ignores_shifts_and_high_frequencies():
    value = drawn(2, 6, 8, 8)
    kept = compact_spectrum(value, 2)
    torch.testing.assert_close(kept, compact_spectrum(value.roll((3, 2), dims=(2, 3)), 2))
    checkerboard = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(4, 4)
    torch.testing.assert_close(kept, compact_spectrum(value + 5 * checkerboard, 2))


def test_the_spectrum_takes_bfloat16_and_dead_maps_with_finite_gradients():
    for value in (drawn(1, 4, 6, 6).to(torch.bfloat16), torch.zeros(1, 4, 6, 6), drawn(1, 4, 6, 6) * 1e4):
        value.requires_grad_()
        compact_spectrum(value, 4).square().sum().backward()
        assert value.grad.isfinite().all()


def test_uhkd_is_zero_beside_the_logits_when_its_modules_are_the_identity_and_the_nets_are_equal():
    info = TEACHERS["vit"]
    method, same = UHKD(info, info, TASK), outputs_of(info)
    for layer in (*method.align, *method.adapt):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    terms = method(batch_of(3), same, same.detach())
    assert terms["frequency"].abs() < 1e-10
    assert terms["kd"].abs() < 1e-6


# --- MSDCRD ---------------------------------------------------------------------------------------------------------


def test_contrast_follows_its_formula():
    student, teacher, temperature = unit(drawn(2, 4, 3)), unit(drawn(2, 4, 3, seed=1)), 0.5
    value = 0.0
    for g, i in itertools.product(range(2), range(4)):
        s, t = student[g].numpy(), teacher[g].numpy()
        forth, back = np.exp(t @ s[i] / temperature), np.exp(s @ t[i] / temperature)
        value -= (np.log(forth[i] / forth.sum()) + np.log(back[i] / back.sum())) / 2 / 8
    assert contrast(student, teacher, temperature).item() == pytest.approx(value, rel=1e-12)


def test_contrast_is_lower_for_true_pairs_than_for_any_other_order_and_measures_the_cosine_of_a_single_pair():
    student = unit(drawn(1, 4, 8))
    right = contrast(student, student, 0.07)
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            assert contrast(student, student[:, list(order)], 0.07) > right
    a, b = student[:, :1], student[:, 1:2]
    torch.testing.assert_close(contrast(a, b, 0.07), 1 - (a * b).sum())
    assert contrast(a, a, 0.07).abs() < 1e-12


def test_windows_are_means_of_what_lies_inside_also_at_the_far_edges():
    value = drawn(2, 3, 5, 5)
    found = window_means(value, (2, 2), 2).numpy()
    expected = [value.numpy()[:, :, y : y + 2, x : x + 2].mean(axis=(2, 3)) for y in (0, 2, 4) for x in (0, 2, 4)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-12)
    torch.testing.assert_close(window_means(value, (5, 5), 2)[:, 0], value.mean((2, 3)))


@pytest.mark.parametrize(
    ("student", "teacher", "windows"),
    [
        ("mlp", "vit", ((7, 7), (4, 4), (2, 2))),
        ("vit", "vit", ((4, 4), (2, 2))),
        ("vit", "cnn", ((2, 2),)),
        ("cnn", "cnn", ((1, 1),)),
    ],
)
def test_windows_are_cut_to_the_smaller_grid_and_each_is_used_once(student, teacher, windows):
    method = MSDCRD(STUDENTS[student], TEACHERS[teacher], TASK)
    assert method.windows == windows
    terms = method(batch_of(3), outputs_of(STUDENTS[student]), outputs_of(TEACHERS[teacher], trained=False))
    assert ("feature" in terms) == (len(windows) > 1)


def test_the_sample_wise_term_takes_the_images_of_all_processes_and_the_feature_wise_term_those_of_one(monkeypatch):
    method = MSDCRD(STUDENTS["mlp"], TEACHERS["vit"], TASK)
    ours, theirs = outputs_of(STUDENTS["mlp"], 4), outputs_of(TEACHERS["vit"], 4, trained=False)

    def part(outputs, rows):
        return Outputs(outputs.logits[rows], [Feature(s.map[rows], None, s.layout) for s in outputs.stages])

    first, second = slice(0, 2), slice(2, 4)
    gathered = []
    monkeypatch.setattr(msdcrd, "gather_batch", lambda value: gathered.append(value) or value)
    other = method(batch_of(2), part(ours, second), part(theirs, second))
    rest = iter(gathered[:])
    monkeypatch.setattr(msdcrd, "gather_batch", lambda value: torch.cat([value, next(rest)]))
    here = method(batch_of(2), part(ours, first), part(theirs, first))
    monkeypatch.undo()
    joint = method(batch_of(4), ours, theirs)
    torch.testing.assert_close(here["sample"], joint["sample"])
    torch.testing.assert_close((here["feature"] + other["feature"]) / 2, joint["feature"])
