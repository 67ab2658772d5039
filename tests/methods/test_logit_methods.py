"""Logit methods (dkd, dist, nkd, lskd, mlld, ssld) against NumPy transcriptions of their formulas, and theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.blocks import warmup_factor
from kdbench.errors import HyperparameterError, KdbenchError
from kdbench.method import Batch, NetInfo, Outputs, StageInfo, Task
from kdbench.methods.dist import DIST, dist_loss, dist_terms
from kdbench.methods.dkd import DKD, dkd_loss, dkd_terms
from kdbench.methods.lskd import LSKD, lskd_loss
from kdbench.methods.mlld import MLLD, batch_loss, class_loss, confidence_masks, instance_loss
from kdbench.methods.nkd import NKD, nkd_loss, nkd_terms
from kdbench.methods.ssld import SSLD, ssld_loss
from kdbench.plugins.registry import catalog

torch.set_num_threads(1)

METHODS = (DKD, DIST, NKD, LSKD, SSLD, MLLD)
CLASSES = 7


def info(name: str = "net") -> NetInfo:
    return NetInfo(name, "cnn", (StageInfo(8, 4, 4, "map"),) * 4, embedding_dim=8, num_classes=CLASSES)


def build(method: type, **hyperparameters):
    labels = torch.arange(20) % CLASSES
    return method(info("student"), info("teacher"), Task(CLASSES, 20, labels), **hyperparameters)


def logits(batch: int = 6, classes: int = CLASSES, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


def labels(batch: int = 6, classes: int = CLASSES) -> torch.Tensor:
    return (torch.arange(batch) * 3 + 1) % classes


def make_batch(size: int = 6, **fields) -> Batch:
    return Batch(labels=labels(size), index=torch.arange(size), **fields)


def outputs(weak: torch.Tensor, strong: torch.Tensor) -> Outputs:
    return Outputs(logits=weak, strong=Outputs(logits=strong))


def gradient(function, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.detach().clone().requires_grad_()
    value = function(student)
    value.backward()
    return value.detach(), student.grad


# NumPy transcriptions, one sample or class at a time.


def softmax(row):
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def pearson(a, b):
    a, b = np.asarray(a) - np.mean(a), np.asarray(b) - np.mean(b)
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8))


def without(row, label):
    return [value for position, value in enumerate(row) if position != label]


def numpy_dkd(student, teacher, target, alpha, beta, temperature):
    total = 0.0
    for zs, zt, y in zip(student / temperature, teacher / temperature, target, strict=True):
        ps, pt = softmax(zs), softmax(zt)
        tckd = kl([pt[y], sum(without(pt, y))], [ps[y], sum(without(ps, y))])
        nckd = kl(softmax(without(zt, y)), softmax(without(zs, y)))
        total += alpha * tckd + beta * nckd
    return temperature**2 * total / len(student)


def numpy_dist(student, teacher, beta, gamma, temperature):
    ps = np.array([softmax(row) for row in student / temperature])
    pt = np.array([softmax(row) for row in teacher / temperature])
    inter = 1 - np.mean([pearson(a, b) for a, b in zip(ps, pt, strict=True)])
    intra = 1 - np.mean([pearson(a, b) for a, b in zip(ps.T, pt.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def numpy_nkd(student, teacher, target, temperature, gamma):
    first = second = 0.0
    for zs, zt, y in zip(student, teacher, target, strict=True):
        first -= softmax(zt)[y] * math.log(softmax(zs)[y])
        qs = softmax(without(zs / temperature, y))
        qt = softmax(without(zt / temperature, y))
        second -= sum(a * math.log(b) for a, b in zip(qt, qs, strict=True))
    return (first + gamma * temperature**2 * second) / len(student)


def numpy_lskd(student, teacher, temperature):
    def standard(row):
        return (row - np.mean(row)) / (np.std(row, ddof=1) + 1e-7) / temperature

    pairs = zip(student, teacher, strict=True)
    return temperature**2 * np.mean([kl(softmax(standard(zt)), softmax(standard(zs))) for zs, zt in pairs])


def numpy_ssld(student, teacher):
    eps, total = 1e-10, 0.0
    for zs, zt in zip(student, teacher, strict=True):
        for a, b in zip(softmax(zs), softmax(zt), strict=True):
            total += 0.5 * (b * math.log((b + eps) / (a + eps)) + a * math.log((a + eps) / (b + eps)))
    return total / len(student)


def numpy_mlld(weak, strong, temperatures):
    """The three levels of MLLD, with the masks at the median of the weak teacher; (student, teacher) of each view."""
    confidence = np.array([softmax(row) for row in weak[1]])
    samples = confidence.max(1) <= np.median(confidence.max(1))
    classes = confidence.sum(0) <= np.median(confidence.sum(0))
    instance = by_class = by_batch = 0.0
    for t in temperatures:
        for view, everything in ((weak, False), (strong, True)):
            ps, pt = (np.array([softmax(row) for row in z / t]) for z in view)
            kept = [kl(b, a) for a, b, keep in zip(ps, pt, samples, strict=True) if keep or everything]
            instance += t**2 * sum(kept) / len(ps)
            difference = ((pt.T @ pt - ps.T @ ps) ** 2).sum(1) * (64 / len(ps)) ** 2
            by_class += difference[classes | everything].sum() / len(classes)
            by_batch += ((pt @ pt.T - ps @ ps.T) ** 2).sum(1)[samples].sum() / len(ps) * 64 / len(ps)
    return instance, by_class, by_batch


#: name -> (loss of (student, teacher, target), its NumPy transcription)
LOSSES = {
    "dkd": (lambda s, t, y: dkd_loss(s, t, y, 1.0, 2.0, 1.0), lambda s, t, y: numpy_dkd(s, t, y, 1.0, 2.0, 1.0)),
    "dkd, T = 4": (lambda s, t, y: dkd_loss(s, t, y, 0.7, 8.0, 4.0), lambda s, t, y: numpy_dkd(s, t, y, 0.7, 8.0, 4.0)),
    "dist": (lambda s, t, y: dist_loss(s, t), lambda s, t, y: numpy_dist(s, t, 1.0, 1.0, 1.0)),
    "dist, T = 4": (lambda s, t, y: dist_loss(s, t, 0.5, 2.0, 4.0), lambda s, t, y: numpy_dist(s, t, 0.5, 2.0, 4.0)),
    "nkd": (lambda s, t, y: nkd_loss(s, t, y, 1.0, 1.5), lambda s, t, y: numpy_nkd(s, t, y, 1.0, 1.5)),
    "nkd, T = 3": (lambda s, t, y: nkd_loss(s, t, y, 3.0, 3.5), lambda s, t, y: numpy_nkd(s, t, y, 3.0, 3.5)),
    "lskd": (lambda s, t, y: lskd_loss(s, t), lambda s, t, y: numpy_lskd(s, t, 2.0)),
    "lskd, T = 5": (lambda s, t, y: lskd_loss(s, t, 5.0), lambda s, t, y: numpy_lskd(s, t, 5.0)),
    "ssld": (lambda s, t, y: ssld_loss(s, t), lambda s, t, y: numpy_ssld(s, t)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


@every_loss
@pytest.mark.parametrize(("batch", "classes"), [(6, 7), (5, 3), (2, 2), (1, 10)])
def test_loss_equals_its_formula_written_in_numpy(name, batch, classes):
    loss, expected = LOSSES[name]
    student, teacher, target = logits(batch, classes, 1), logits(batch, classes, 2), labels(batch, classes)
    value = loss(student, teacher, target).item()
    assert value == pytest.approx(expected(student.numpy(), teacher.numpy(), target.numpy()), rel=1e-10)


@every_loss
def test_gradient_of_loss_is_that_of_its_finite_differences(name):
    teacher, target = logits(4, seed=2), labels(4)
    student = logits(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: LOSSES[name][0](value, teacher, target), (student,))


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("nkd")])
def test_student_equal_to_teacher_has_zero_loss_and_zero_gradient(name):
    teacher = logits(scale=1.0)
    value, slope = gradient(lambda student: LOSSES[name][0](student, teacher, labels()), teacher)
    # The 1e-8 in DIST's correlation leaves a loss of the order of 1e-8 over a squared norm.
    assert value.abs() < (1e-4 if name.startswith("dist") else 1e-12)
    assert slope.abs().max() < (1e-5 if name.startswith("dist") else 1e-12)


@every_loss
def test_constant_added_to_the_logits_of_a_sample_changes_nothing(name):
    student, teacher, target = logits(seed=1), logits(seed=2), labels()
    shifted = LOSSES[name][0](student + logits(6, 1, 3), teacher + logits(6, 1, 4), target)
    torch.testing.assert_close(shifted, LOSSES[name][0](student, teacher, target))


@every_loss
def test_order_of_the_batch_changes_nothing(name):
    student, teacher, target = logits(seed=1), logits(seed=2), labels()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = LOSSES[name][0](student[order], teacher[order], target[order])
    torch.testing.assert_close(permuted, LOSSES[name][0](student, teacher, target))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("swap", [False, True], ids=["student is sure", "teacher is sure"])
def test_logits_a_thousand_apart_give_finite_loss_and_gradient(name, dtype, swap):
    extreme = torch.zeros(4, CLASSES, dtype=dtype)
    extreme[0, 0], extreme[1, 1], extreme[2], extreme[3, 2] = 1e3, -1e3, torch.linspace(-500, 500, CLASSES), 1e3
    extreme[3, 3] = -1e3
    other = logits(4, scale=1.0).to(dtype)
    target = torch.tensor([0, 1, 3, 3])
    student, teacher = (other, extreme) if swap else (extreme, other)
    value, slope = gradient(lambda student: LOSSES[name][0](student, teacher, target), student)
    assert value.isfinite()
    assert slope.isfinite().all()


@every_loss
def test_bfloat16_logits_give_the_loss_of_the_same_numbers_in_full_precision(name):
    student, teacher, target = logits(seed=1).bfloat16(), logits(seed=2).bfloat16(), labels()
    expected = LOSSES[name][0](student.double(), teacher.double(), target)
    torch.testing.assert_close(LOSSES[name][0](student, teacher, target).double(), expected, rtol=1e-4, atol=1e-5)


# DKD and NKD


@pytest.mark.parametrize("gap", [1.0, 30.0, 60.0, 1e3])
def test_dkd_keeps_the_probability_of_all_other_classes_where_it_rounds_to_zero(gap):
    teacher = torch.zeros(1, 2, dtype=torch.float64)
    student = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    tckd, nckd = dkd_terms(student, teacher, torch.tensor([0]), 1.0)
    assert tckd.item() == pytest.approx(-math.log(2) + 0.5 * gap + math.log1p(math.exp(-gap)), rel=1e-12)
    assert nckd.item() == 0  # one class left: nothing to tell


def test_dkd_with_a_gap_beyond_a_thousand_does_not_see_the_target_among_the_others():
    student, teacher, target = logits(), logits(seed=2), labels()
    _, expected = dkd_terms(student, teacher, target, 1.0)
    raised = student.scatter_add(1, target.unsqueeze(1), torch.full((6, 1), 5e3, dtype=torch.float64))
    torch.testing.assert_close(dkd_terms(raised, teacher, target, 1.0)[1], expected)


def test_dkd_weights_sum_to_kd_when_beta_is_the_teacher_probability_of_the_others():
    # KL = TCKD + (1 - p_target) NCKD, sample by sample (Zhao et al. 2022, eq. 6).
    student, teacher, target = logits(1, seed=1), logits(1, seed=2), labels(1)
    others = 1 - teacher.softmax(1)[0, target[0]].item()
    expected = kl(softmax(teacher[0].numpy()), softmax(student[0].numpy()))
    assert dkd_loss(student, teacher, target, 1.0, others, 1.0).item() == pytest.approx(expected, rel=1e-12)


def test_dkd_warm_up_counts_the_first_epoch_as_one():
    assert [warmup_factor(epoch, 4) for epoch in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0
    method = build(DKD, warmup_epochs=4)
    student, teacher = Outputs(logits()), Outputs(logits(seed=1))
    early, late = (method(make_batch(epoch=epoch), student, teacher) for epoch in (1, 9))
    assert early["ce"] == late["ce"]
    for term in ("tckd", "nckd"):
        torch.testing.assert_close(early[term], 0.5 * late[term])


@pytest.mark.parametrize("method", [DKD, NKD], ids=["DKD", "NKD"])
def test_target_after_mixup_is_the_class_with_the_largest_soft_label(method):
    soft = torch.full((6, CLASSES), 0.01, dtype=torch.float64)
    soft[torch.arange(6), (labels() + 2) % CLASSES] = 0.9
    student, teacher = Outputs(logits()), Outputs(logits(seed=1))
    mixed = build(method)(make_batch(targets=soft), student, teacher)
    moved = Batch(labels=(labels() + 2) % CLASSES, index=torch.arange(6))
    hard = build(method)(moved, student, teacher)
    for term in set(mixed) - {"ce"}:
        torch.testing.assert_close(mixed[term], hard[term])


def test_nkd_non_target_term_is_least_at_the_teacher_and_is_then_its_entropy():
    teacher, target, temperature = logits(seed=2), labels(), 3.0
    value, slope = gradient(lambda student: nkd_terms(student, teacher, target, temperature)[1], teacher)
    rows = zip(teacher.numpy() / temperature, target.numpy(), strict=True)
    entropies = [-sum(q * math.log(q) for q in softmax(without(row, y))) for row, y in rows]
    assert value.item() == pytest.approx(9 * np.mean(entropies), rel=1e-12)
    assert slope.abs().max() < 1e-12
    assert gradient(lambda student: nkd_terms(student, teacher, target, temperature)[0], teacher)[1].abs().max() > 1e-3


# DIST, LSKD, SSLD


def test_dist_ignores_the_scale_and_shift_of_predictions_across_classes():
    probabilities = logits(seed=1).softmax(1)
    flatter = (0.5 * probabilities + 0.5 / CLASSES).log()
    inter, _ = dist_terms(flatter, probabilities.log())
    assert inter.item() == pytest.approx(0.0, abs=1e-6)


def test_dist_of_one_sample_has_no_correlation_within_a_class_and_no_gradient_from_it():
    value, slope = gradient(lambda student: dist_terms(student, logits(1, seed=2), 2.0)[1], logits(1))
    assert value.item() == 4.0
    assert slope.abs().max() == 0


def test_lskd_ignores_a_positive_factor_of_the_logits_but_not_a_negative_one():
    teacher = logits()
    assert lskd_loss(17.0 * teacher + 3.0, teacher).item() == pytest.approx(0.0, abs=1e-12)
    assert lskd_loss(-teacher, teacher).item() > 0.1


def test_lskd_of_equal_logits_is_finite():
    value, slope = gradient(lambda student: lskd_loss(student, logits(seed=1)), torch.zeros(6, CLASSES))
    assert value.isfinite()
    assert slope.isfinite().all()


def test_ssld_is_symmetric_and_bounded_and_uses_no_labels():
    student, teacher = logits(seed=1), logits(seed=2)
    torch.testing.assert_close(ssld_loss(student, teacher), ssld_loss(teacher, student))
    apart = torch.tensor([[1e3, 0.0]]), torch.tensor([[0.0, 1e3]])
    assert ssld_loss(*apart).item() == pytest.approx(math.log(1e10), rel=1e-5)
    assert set(build(SSLD)(make_batch(), Outputs(student), Outputs(teacher))) == {"ssld"}
    assert set(build(SSLD, ce_weight=0.5)(make_batch(), Outputs(student), Outputs(teacher))) == {"ssld", "ce"}


# MLLD


def test_mlld_terms_equal_their_formulas_written_in_numpy():
    weak, strong = (logits(seed=1), logits(seed=2)), (logits(seed=3), logits(seed=4))
    temperatures = (4.0, 2.0)
    method = build(MLLD, temperatures=temperatures, ce_weight=0.3, kd_weight=0.7)
    terms = method(make_batch(), outputs(weak[0], strong[0]), outputs(weak[1], strong[1]))
    views = [tuple(z.numpy() for z in view) for view in (weak, strong)]
    for name, expected in zip(("kd", "class", "batch"), numpy_mlld(*views, temperatures), strict=True):
        assert terms[name].item() == pytest.approx(0.7 * expected, rel=1e-10), name
    supervised = -sum(z.log_softmax(1)[torch.arange(6), labels()].mean() for z in (weak[0], strong[0]))
    torch.testing.assert_close(terms["ce"], 0.3 * supervised)


def test_mlld_without_the_strong_view_says_what_is_missing():
    both = outputs(logits(), logits())
    with pytest.raises(KdbenchError, match=r"strongly augmented view.*student\.strong is None"):
        build(MLLD)(make_batch(), Outputs(logits()), both)
    with pytest.raises(KdbenchError, match=r"teacher\.strong is None"):
        build(MLLD)(make_batch(), both, Outputs(logits()))
    assert "strong" in MLLD.needs


def test_mlld_masks_select_single_samples_and_classes_instead_of_halving_the_loss():
    student, teacher = logits(seed=1), logits(seed=2)
    samples, classes = confidence_masks(teacher)
    assert samples.sum() == 3
    assert classes.sum() == 4
    confidence = teacher.softmax(1).amax(1)
    assert confidence[samples.bool()].max() < confidence[~samples.bool()].min()
    _, slope = gradient(lambda student: instance_loss(student, teacher, 2.0, samples), student)
    assert (slope.abs().amax(1) > 0).tolist() == samples.bool().tolist()


@pytest.mark.parametrize("loss", [instance_loss, class_loss, batch_loss])
def test_mlld_level_is_zero_without_gradient_when_the_student_equals_the_teacher(loss):
    teacher = logits(seed=2)
    value, slope = gradient(lambda student: loss(student, teacher, 2.0), teacher)
    assert value.abs() < 1e-14
    assert slope.abs().max() < 1e-14


def test_mlld_gradient_reaches_both_views_in_every_term():
    weak, strong = logits(seed=1).requires_grad_(), logits(seed=3).requires_grad_()
    terms = build(MLLD)(make_batch(), outputs(weak, strong), outputs(logits(seed=2), logits(seed=4)))
    assert set(terms) == {"ce", "kd", "class", "batch"}
    for term in terms.values():
        slopes = torch.autograd.grad(term, (weak, strong), retain_graph=True)
        assert all(slope.abs().max() > 0 for slope in slopes)


def test_mlld_with_logits_a_thousand_apart_is_finite():
    extreme = torch.zeros(6, CLASSES)
    extreme[:, 0], extreme[2:, 1] = 1e3, -1e3
    weak, strong = extreme.clone().requires_grad_(), (-extreme).requires_grad_()
    teacher = outputs(logits().float(), logits(seed=1).float())
    terms = build(MLLD)(make_batch(), outputs(weak, strong), teacher)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert weak.grad.isfinite().all()
    assert strong.grad.isfinite().all()


# All of them as methods


@every_method
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_method_gives_finite_scalar_terms_and_a_gradient_for_any_batch(method, size, dtype):
    weak, strong = (logits(size, seed=seed).to(dtype).requires_grad_() for seed in (1, 3))
    teacher = outputs(logits(size, seed=2).to(dtype), logits(size, seed=4).to(dtype))
    terms = build(method)(make_batch(size), outputs(weak, strong), teacher)
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert weak.grad.isfinite().all()
    assert weak.grad.abs().max() > 0


@every_method
def test_method_takes_its_hyperparameters_from_the_catalogue_on_every_data_set(method):
    entry = catalog().find(method.name)
    assert entry.family == "logits"
    for dataset in ("cifar100", "cifar100-32", "imagenet1k", "digits"):
        build(method, **entry.resolve(dataset))


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("dkd", "cifar100", {"alpha": 1.0, "beta": 2.0, "temperature": 1.0, "warmup_epochs": 0}),
        ("dkd", "cifar100-32", {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup_epochs": 20}),
        ("dkd", "imagenet1k", {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "warmup_epochs": 1}),
        ("dist", "cifar100", {"temperature": 1.0, "dist_weight": 1.0}),
        ("dist", "cifar100-32", {"temperature": 4.0, "dist_weight": 2.0}),
        ("nkd", "imagenet1k", {"temperature": 1.0, "gamma": 1.5}),
        ("lskd", "imagenet1k", {"temperature": 2.0, "ce_weight": 1.0, "kd_weight": 9.0}),
        ("mlld", "imagenet1k", {"temperatures": (1.0, 3.0, 5.0, 2.0, 6.0), "ce_weight": 0.5, "kd_weight": 0.5}),
    ],
)
def test_hyperparameters_on_a_data_set_are_those_of_its_protocol(name, dataset, expected):
    resolved = catalog().find(name).resolve(dataset)
    assert expected.items() <= resolved.items()


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        *((method, "temperature", 0.0) for method in (DKD, DIST, NKD, LSKD)),
        *((method, "ce_weight", -1.0) for method in METHODS),
        (DKD, "warmup_epochs", -1),
        (DKD, "beta", math.nan),
        (NKD, "gamma", -0.1),
        (MLLD, "temperatures", ()),
        (MLLD, "temperatures", (4.0, 0.0)),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(method, name, value):
    with pytest.raises(HyperparameterError, match=name):
        build(method, **{name: value})


@every_method
def test_method_can_be_built_without_memory(method):
    with torch.device("meta"):
        method(info(), info(), Task(CLASSES, 20, torch.empty(20, dtype=torch.int64)))
