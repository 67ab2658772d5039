"""AT, VID, ReviewKD, MGD, SRRL, CAT-KD and SimKD: their formulas, and that they run on every kind of pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from kdbench import Batch, Feature, NetInfo, Outputs, StageInfo, Task
from kdbench.errors import HyperparameterError
from kdbench.methods.at import AT, at_loss
from kdbench.methods.catkd import CATKD, cat_loss, embedding_map
from kdbench.methods.mgd import MGD, channel_mask, mgd_loss
from kdbench.methods.reviewkd import ReviewKD, hcl_loss
from kdbench.methods.simkd import SimKD
from kdbench.methods.srrl import SRRL, BatchNormAnySize, srrl_losses
from kdbench.methods.vid import VID, vid_loss
from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import NetSpec

CLASSES = 10
METHODS = [AT, VID, ReviewKD, MGD, SRRL, CATKD, SimKD]


def net(family, widths, grids, class_tokens=0, embedding_dim=None, **extra):
    layout = "map" if family == "cnn" else "tokens"
    stages = tuple(StageInfo(w, g, g, layout, class_tokens) for w, g in zip(widths, grids, strict=True))
    return NetInfo(family, family, stages, embedding_dim or widths[-1], CLASSES, **extra)


STUDENTS = {
    "cnn": net("cnn", (8, 16, 24, 32), (8, 4, 2, 1)),
    "vit": net("vit", (12,) * 4, (4,) * 4, class_tokens=1),
    "mlp": net("mlp", (20,) * 4, (7,) * 4),
}
TEACHERS = {
    "cnn": net("cnn", (16, 32, 48, 64), (16, 8, 4, 2)),
    "vit": net("vit", (32,) * 4, (7,) * 4, class_tokens=2),
    "mlp": net("mlp", (24,) * 4, (3,) * 4),
}
PAIRS = list(itertools.product(STUDENTS, TEACHERS))
TASK = Task(CLASSES, 100, torch.zeros(100, dtype=torch.int64))


def outputs_of(info, batch=3, trained=True, seed=0, dtype=torch.float32):
    """Random outputs in the shapes of a net; leaves that collect gradients for a student."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=draw).to(dtype).requires_grad_(trained)

    stages = [
        Feature(
            leaf(batch, s.channels, s.height, s.width),
            leaf(batch, s.class_tokens, s.channels) if s.class_tokens else None,
            s.layout,
        )
        for s in info.stages
    ]
    classifier = nn.Linear(info.embedding_dim, CLASSES).requires_grad_(trained)
    return Outputs(leaf(batch, CLASSES), stages, leaf(batch, info.embedding_dim), classifier)


def batch_of(size, epoch=0):
    return Batch(torch.arange(size) % CLASSES, torch.arange(size), epoch=epoch)


def numpy_pool(value, size):
    """Average over size x size cells that divide the map."""
    b, c, h, w = value.shape
    return value.reshape(b, c, size, h // size, size, w // size).mean(axis=(3, 5))


def maps(*shapes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]


# --- every method on every pair -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("cls", METHODS)
def test_runs_on_every_pair_and_trains_the_student_and_every_parameter_but_not_the_teacher(cls, student, teacher, size):
    torch.manual_seed(0)
    assert cls.supports(STUDENTS[student], TEACHERS[teacher]) is None
    method = cls(STUDENTS[student], TEACHERS[teacher], TASK).train()
    ours, theirs = outputs_of(STUDENTS[student], size), outputs_of(TEACHERS[teacher], size, trained=False, seed=1)
    terms = method(batch_of(size), ours, theirs)
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    gradient = ours.stages[-1].map.grad
    assert gradient.isfinite().all()
    if not (cls in (AT, CATKD) and student == "cnn"):  # 1 x 1 maps of unit length are constant
        assert gradient.abs().sum() > 0
    assert all(p.grad is None for p in theirs.classifier.parameters())


@pytest.mark.parametrize("cls", METHODS)
def test_builds_on_the_meta_device(cls):
    with torch.device("meta"):
        labels = torch.zeros(100, dtype=torch.int64)
        method = cls(STUDENTS["vit"], TEACHERS["cnn"], Task(CLASSES, 100, labels))
    assert all(p.is_meta for p in method.parameters())


@pytest.mark.parametrize("cls", METHODS)
def test_the_same_seed_gives_the_same_loss_and_a_state_survives_a_round_trip(cls):
    def loss(method):
        torch.manual_seed(1)
        terms = method.eval()(batch_of(3), outputs_of(STUDENTS["mlp"]), outputs_of(TEACHERS["vit"], trained=False))
        return sum(terms.values())

    torch.manual_seed(0)
    first = cls(STUDENTS["mlp"], TEACHERS["vit"], TASK)
    second = cls(STUDENTS["mlp"], TEACHERS["vit"], TASK)
    second.load_state_dict(first.state_dict())
    assert torch.equal(loss(first), loss(second))


@pytest.mark.parametrize("cls", METHODS)
def test_logit_gaps_of_a_thousand_and_bfloat16_logits_stay_finite(cls):
    for gap, dtype in ((1e3, torch.float32), (1.0, torch.bfloat16)):
        ours, theirs = outputs_of(STUDENTS["vit"]), outputs_of(TEACHERS["mlp"], trained=False)
        ours.logits = (ours.logits.detach() * gap).to(dtype).requires_grad_()
        theirs.logits = (theirs.logits * gap).to(dtype)
        total = sum(cls(STUDENTS["vit"], TEACHERS["mlp"], TASK)(batch_of(3), ours, theirs).values())
        total.backward()
        assert total.isfinite()
        assert ours.stages[-1].map.grad.isfinite().all()


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (AT, {"stages": (5,)}),
        (AT, {"p": 0}),
        (VID, {"init_variance": 0.0}),
        (VID, {"stages": ()}),
        (ReviewKD, {"warmup_epochs": -1}),
        (MGD, {"mask_ratio": 1.0}),
        (MGD, {"mgd_weight": -1.0}),
        (SRRL, {"regression_weight": -1.0}),
        (CATKD, {"resolution": 0}),
        (SimKD, {"reduction": 0}),
    ],
)
def test_hyper_parameters_out_of_range_are_refused_by_name(cls, wrong):
    with pytest.raises(HyperparameterError, match=next(iter(wrong))):
        cls(STUDENTS["cnn"], TEACHERS["cnn"], TASK, **wrong)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: at_loss(s, t),
        lambda s, t: hcl_loss(s, t),
        lambda s, t: cat_loss(s, t, 2, True),
        lambda s, t: cat_loss(s, t, 2, False),
        lambda s, t: mgd_loss(s, t),
        lambda s, t: sum(srrl_losses(s.mean((2, 3)), t.mean((2, 3)), s.flatten(1), t.flatten(1))),
    ],
    ids=["at", "hcl", "cat-normalised", "cat", "mgd", "srrl"],
)
def test_a_loss_is_zero_with_zero_gradient_at_the_teacher_and_ignores_the_order_of_the_batch(loss):
    student, teacher = maps((4, 5, 8, 8), (4, 5, 8, 8))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(student, teacher), loss(student[order], teacher[order]))
    assert loss(student, teacher) > 0
    equal = teacher.clone().requires_grad_()
    value = loss(equal, teacher)
    value.backward()
    assert value.abs() < 1e-15
    assert equal.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", [at_loss, hcl_loss, lambda s, t: cat_loss(s, t, 2, True)], ids=["at", "hcl", "cat"])
def test_a_loss_is_finite_on_bfloat16_on_huge_on_dead_and_on_single_maps(loss):
    for make in (
        lambda m: m.to(torch.bfloat16),
        lambda m: m * 1e3,
        torch.zeros_like,
        lambda m: m[:1, :, :1, :1].float(),
    ):
        student, teacher = (make(m) for m in maps((2, 3, 6, 6), (2, 3, 6, 6)))
        student = student.detach().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


# --- attention transfer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 4])
def test_at_follows_its_formula_on_maps_of_any_width_and_grid(p):
    student, teacher = maps((3, 5, 4, 4), (3, 7, 8, 8))
    value = 0.0
    for i in range(3):
        a = (student[i].numpy() ** p).mean(axis=0).ravel()
        b = (numpy_pool(teacher.numpy(), 4)[i] ** p).mean(axis=0).ravel()
        value += np.mean((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2) / 3
    assert at_loss(student, teacher, p).item() == pytest.approx(value, rel=1e-12)


def test_at_ignores_the_scale_of_a_sample():
    (student,) = maps((3, 5, 4, 4))
    assert at_loss(student, 3 * student).item() < 1e-30


def test_at_sums_over_the_stages_chosen():
    ours, theirs = outputs_of(STUDENTS["vit"]), outputs_of(TEACHERS["vit"], trained=False)
    one, two, both = (
        AT(STUDENTS["vit"], TEACHERS["vit"], TASK, stages=stages)(batch_of(3), ours, theirs)["at"]
        for stages in ((1,), (3,), (1, 3))
    )
    torch.testing.assert_close(one + two, both)


# --- VID ------------------------------------------------------------------------------------------------------------


def test_vid_follows_its_formula_and_is_least_where_the_variance_is_the_squared_error():
    mean, teacher, alpha = maps((3, 4, 2, 2), (3, 4, 2, 2), (4,))
    error = (mean - teacher).numpy() ** 2
    variance = (np.log1p(np.exp(alpha.numpy())) + 1e-5).reshape(1, 4, 1, 1)
    expected = np.mean(0.5 * (error / variance + np.log(variance)))
    assert vid_loss(mean, teacher, alpha).item() == pytest.approx(expected, rel=1e-12)
    best = torch.log(torch.expm1(torch.tensor(error.mean(axis=(0, 2, 3)) - 1e-5))).requires_grad_()
    vid_loss(mean, teacher, best).backward()
    assert best.grad.abs().max() < 1e-12
    mean = teacher.clone().requires_grad_()
    vid_loss(mean, teacher, alpha).backward()
    assert mean.grad.abs().max() == 0


def test_vid_trains_its_variances_which_start_at_five():
    method = VID(STUDENTS["cnn"], TEACHERS["vit"], TASK)
    assert [tuple(a.shape) for a in method.alphas] == [(32,)] * 4
    for alpha in method.alphas:
        assert alpha.requires_grad
        torch.testing.assert_close(nn.functional.softplus(alpha) + 1e-5, torch.full((32,), 5.0))
    assert method.alphas[0][0].item() == pytest.approx(math.log(math.exp(5 - 1e-5) - 1), rel=1e-6)
    assert "alphas.0" in dict(method.named_parameters())
    assert VID(STUDENTS["cnn"], TEACHERS["vit"], TASK, init_variance=1e4).alphas[0].isfinite().all()


# --- ReviewKD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 2, 4, 8])
def test_hcl_follows_its_formula_with_only_the_levels_coarser_than_the_map(grid):
    student, teacher = maps((2, 3, grid, grid), (2, 3, grid, grid))
    s, t = student.numpy(), teacher.numpy()
    levels = [level for level in (4, 2, 1) if level < grid]
    weights = [0.5 ** (k + 1) for k in range(len(levels))]
    value = np.mean((s - t) ** 2)
    value += sum(w * np.mean((numpy_pool(s, k) - numpy_pool(t, k)) ** 2) for w, k in zip(weights, levels, strict=True))
    assert hcl_loss(student, teacher).item() == pytest.approx(value / (1 + sum(weights)), rel=1e-12)


def test_reviewkd_ramps_up_over_the_warm_up_and_is_never_zero():
    torch.manual_seed(0)
    method = ReviewKD(STUDENTS["vit"], TEACHERS["cnn"], TASK, warmup_epochs=4).eval()
    ours, theirs = outputs_of(STUDENTS["vit"]), outputs_of(TEACHERS["cnn"], trained=False)
    values = torch.stack([method(batch_of(3, epoch), ours, theirs)["review"] for epoch in (0, 1, 3, 9)])
    torch.testing.assert_close(values / values[-1], torch.tensor([0.25, 0.5, 1.0, 1.0]))


@pytest.mark.parametrize("student_too", [False, True])
def test_reviewkd_takes_the_teachers_maps_before_the_activation_and_the_students_where_asked(student_too):
    """mdistiller ReviewKD.py: preact_feats of the teacher; of the student with STU_PREACT, as on ImageNet."""
    method = ReviewKD(STUDENTS["cnn"], TEACHERS["cnn"], TASK, student_preactivation=student_too).eval()
    student, teacher = outputs_of(STUDENTS["cnn"], 3), outputs_of(TEACHERS["cnn"], 3, trained=False, seed=1)
    given = []
    for fusion in method.fusions:
        fusion.reduce.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    before = method(batch_of(3), student, teacher)["review"]
    assert [value is stage.map for value, stage in zip(given[1:], student.stages[::-1], strict=True)] == [True] * 4
    given.clear()
    for stage in (*student.stages, *teacher.stages):
        stage.preactivation = stage.map - 1
    after = method(batch_of(3), student, teacher)["review"]
    assert all(
        value is (stage.preactivation if student_too else stage.map)
        for value, stage in zip(given[1:], student.stages[::-1], strict=True)
    )
    assert before.item() != after.item()


def test_reviewkd_reviews_its_stages_from_deep_to_shallow():
    method = ReviewKD(STUDENTS["cnn"], TEACHERS["cnn"], TASK, stages=(2, 4)).eval()
    student, teacher = outputs_of(STUDENTS["cnn"], 3), outputs_of(TEACHERS["cnn"], 3, trained=False, seed=1)
    given = []
    for fusion in method.fusions:
        fusion.reduce.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    method(batch_of(3), student, teacher)
    assert [value is student.stages[n - 1].map for value, n in zip(given[1:], (4, 2), strict=True)] == [True, True]


def test_reviewkd_hands_the_deeper_levels_down_to_the_shallow_ones():
    method = ReviewKD(STUDENTS["mlp"], TEACHERS["vit"], TASK).eval()
    ours, theirs = outputs_of(STUDENTS["mlp"]), outputs_of(TEACHERS["vit"], trained=False)
    fusion = method.fusions[-1]  # the shallowest: with its own input shut off it still hears of the deeper ones
    nn.init.zeros_(fusion.reduce[0].weight)
    method(batch_of(3), ours, theirs)["review"].backward()
    assert fusion.gate.weight.grad.abs().sum() > 0
    assert ours.stages[0].map.grad.abs().sum() == 0


def test_batch_norm_of_any_size_is_batch_norm_and_takes_one_value_per_channel():
    norm, plain = BatchNormAnySize(4), nn.BatchNorm2d(4)
    value = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(norm(value), plain(value))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    single = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(norm(single), plain.eval()(single))


# --- MGD ------------------------------------------------------------------------------------------------------------


def test_mgd_sums_squared_errors_and_divides_by_the_batch():
    student, teacher = maps((3, 4, 2, 2), (3, 4, 2, 2))
    expected = ((student.numpy() - teacher.numpy()) ** 2).sum() / 3
    assert mgd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_mgd_masks_whole_channels_from_the_default_generator():
    torch.manual_seed(3)
    first = channel_mask(torch.zeros(50, 40, 2, 2), 0.15)
    torch.manual_seed(3)
    assert torch.equal(first, channel_mask(torch.zeros(50, 40, 2, 2), 0.15))
    assert first.shape == (50, 40, 1, 1)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert (first == 0).float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert channel_mask(torch.zeros(5, 4, 2, 2), 0.0).all()


def test_mgd_aligns_only_where_the_widths_differ():
    assert isinstance(MGD(STUDENTS["vit"], STUDENTS["vit"], TASK).align, nn.Identity)
    assert isinstance(MGD(STUDENTS["vit"], TEACHERS["vit"], TASK).align, nn.Conv2d)


# --- SRRL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_srrl_follows_its_formula_and_drops_the_relu_for_teachers_with_negative_features(signed):
    info = TEACHERS["vit"]
    method = SRRL(STUDENTS["mlp"], info, TASK, feature_weight=2.0, regression_weight=3.0).eval()
    ours, theirs = outputs_of(STUDENTS["mlp"]), outputs_of(info, trained=False)
    if not signed:
        theirs.embedding = theirs.embedding.abs()
    weight = method.connector[0].weight.detach().numpy()[:, :, 0, 0]
    projected = np.einsum("oc,bchw->bohw", weight, ours.stages[-1].map.detach().numpy()) / math.sqrt(1 + 1e-5)
    pooled = (projected if signed else np.maximum(projected, 0)).mean(axis=(2, 3))
    layer = theirs.classifier
    logits = pooled @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    terms = method(batch_of(3), ours, theirs)
    feature = np.mean((pooled - theirs.embedding.numpy()) ** 2)
    assert terms["feature"].item() == pytest.approx(2 * feature, rel=1e-4)
    assert terms["regression"].item() == pytest.approx(3 * np.mean((logits - theirs.logits.numpy()) ** 2), rel=1e-4)


# --- CAT-KD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_cat_follows_its_formula_on_two_grids(normalize):
    student, teacher = maps((2, 5, 4, 4), (2, 5, 8, 8))
    s, t = (numpy_pool(m.numpy(), 2).reshape(2, 5, 4) for m in (student, teacher))
    if normalize:
        s, t = (m / np.linalg.norm(m, axis=2, keepdims=True) for m in (s, t))
    assert cat_loss(student, teacher, 2, normalize).item() == pytest.approx(np.mean((s - t) ** 2), rel=1e-12)


def test_cat_with_normalisation_ignores_the_scale_of_a_class_map():
    (student,) = maps((2, 5, 4, 4))
    assert cat_loss(student, student * torch.rand(2, 5, 1, 1), 2, True).item() < 1e-30


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit", "swin", "mixer", "resmlp"])
def test_the_mean_class_map_of_every_net_is_its_logits(name):
    torch.manual_seed(0)
    model = TappedNet(NetSpec(timm=f"{name}_32px_small"), CLASSES).eval()
    nn.init.normal_(model.classifier.weight)
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, 32, 32), {"logits", "stages", "embedding", "classifier"})
    final = embedding_map(outputs.stages[-1].map, outputs.embedding)
    class_maps = torch.einsum("bdhw,cd->bchw", final, outputs.classifier.weight)
    torch.testing.assert_close(class_maps.mean((2, 3)) + outputs.classifier.bias, outputs.logits, rtol=1e-4, atol=1e-4)
    if name == "resnet":
        torch.testing.assert_close(final, outputs.stages[-1].map, rtol=1e-4, atol=1e-5)


def test_cat_trains_the_students_classifier_also_from_zero():
    ours, theirs = outputs_of(STUDENTS["mlp"]), outputs_of(TEACHERS["cnn"], trained=False)
    nn.init.zeros_(ours.classifier.weight)
    sum(CATKD(STUDENTS["mlp"], TEACHERS["cnn"], TASK)(batch_of(3), ours, theirs).values()).backward()
    assert 0 < ours.classifier.weight.grad.abs().max() < 1e3


@pytest.mark.parametrize(
    ("extra", "reason"), [({"linear_classifier": False}, "not one linear layer"), ({"embedding_dim": 99}, "reads 99")]
)
def test_pairs_without_a_classifier_for_the_last_map_are_refused_with_the_reason(extra, reason):
    odd = net("cnn", (8, 16, 24, 32), (8, 4, 2, 1), **extra)
    assert reason in CATKD.supports(odd, TEACHERS["cnn"])
    assert reason in CATKD.supports(STUDENTS["cnn"], odd)
    assert reason in SimKD.supports(STUDENTS["cnn"], odd)
    assert SimKD.supports(odd, TEACHERS["cnn"]) is None  # the student's classifier is not used


# --- SimKD ----------------------------------------------------------------------------------------------------------


def test_simkd_with_a_perfect_projection_predicts_what_the_teacher_predicts():
    student, teacher = STUDENTS["cnn"], TEACHERS["vit"]
    method = SimKD(student, teacher, TASK).eval()
    ours, theirs = outputs_of(student), outputs_of(teacher, trained=False)
    method(batch_of(3), ours, theirs)
    method.projector = nn.Module()  # stands for a projector that has learned its target
    method.projector.forward = lambda value: theirs.embedding[:, :, None, None]
    torch.testing.assert_close(method.predict(ours), theirs.classifier(theirs.embedding))
    assert method(batch_of(3), ours, theirs)["feature"].item() < 1e-10


def test_simkd_predicts_from_its_checkpoint_without_a_teacher():
    student, teacher = STUDENTS["mlp"], TEACHERS["vit"]
    method, ours = SimKD(student, teacher, TASK), outputs_of(student)
    method(batch_of(3), ours, outputs_of(teacher, trained=False))
    restored = SimKD(student, teacher, TASK)
    restored.load_state_dict(method.state_dict())
    prediction = restored.eval().predict(ours)
    assert prediction.shape == (3, CLASSES)
    assert torch.equal(prediction, method.eval().predict(ours))
    assert prediction.abs().sum() > 0
    assert not any(name.startswith("classifier") for name, _ in method.named_parameters())


def test_simkd_matches_the_plain_map_of_a_cnn_teacher_and_keeps_the_relu_only_there():
    student, teacher = STUDENTS["mlp"], TEACHERS["cnn"]
    method, ours, theirs = SimKD(student, teacher, TASK), outputs_of(student), outputs_of(teacher, trained=False)
    theirs.stages[-1] = Feature(theirs.stages[-1].map.relu())
    theirs.embedding = theirs.stages[-1].map.mean((2, 3))
    value = method.eval()(batch_of(3), ours, theirs)["feature"].item()
    pooled = nn.functional.adaptive_avg_pool2d(ours.stages[-1].map, 2)
    projected = method.projector(pooled).detach().numpy()
    expected = np.mean((np.maximum(projected, 0) - theirs.stages[-1].map.numpy()) ** 2)
    assert value == pytest.approx(expected, rel=1e-4)
    assert not method.signed
    method(batch_of(3), ours, outputs_of(teacher, trained=False))
    assert method.signed
    torch.testing.assert_close(method._project(ours), method.projector(pooled))


def test_simkd_can_be_called_twice_before_the_backward_pass():
    method = SimKD(STUDENTS["mlp"], TEACHERS["vit"], TASK)
    ours = outputs_of(STUDENTS["mlp"])
    losses = [method(batch_of(3), ours, outputs_of(TEACHERS["vit"], trained=False, seed=s))["feature"] for s in (1, 2)]
    sum(losses).backward()
    assert ours.stages[-1].map.grad.isfinite().all()
