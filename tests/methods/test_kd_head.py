"""KD with a trained head: its terms written out, where the head begins, what trains it, and that it is kept in a checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench import Batch, NetInfo, Outputs, StageInfo, Task
from kdbench.methods.kd import KD
from kdbench.methods.kd_head import KDHead

CLASSES, SIZE, WIDTH = 5, 4, 8
STUDENT = NetInfo("student", "cnn", (StageInfo(6, 2, 2, "map"),) * 4, 6, CLASSES)
TEACHER = NetInfo("teacher", "vit", (StageInfo(WIDTH, 4, 4, "tokens", 1),) * 4, WIDTH, CLASSES)
TASK = Task(CLASSES, 20, torch.arange(20) % CLASSES)
BATCH = Batch(torch.tensor([0, 3, 1, 3]), torch.arange(SIZE))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(**hyperparameters: float) -> KDHead:
    torch.manual_seed(0)
    return KDHead(STUDENT, TEACHER, TASK, **hyperparameters).double()


def outputs(seed: int = 1, bias: bool = True) -> tuple[Outputs, Outputs]:
    """Of a student, and of a teacher with a linear classifier that is always the same."""
    torch.manual_seed(7)
    classifier = nn.Linear(WIDTH, CLASSES, bias=bias).double().requires_grad_(False)
    embedding = draw(SIZE, WIDTH, seed=seed + 100)
    student = Outputs(2 * draw(SIZE, CLASSES, seed=seed).requires_grad_())
    return student, Outputs(classifier(embedding), embedding=embedding, classifier=classifier)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(value) for value in row]
    return [weight / sum(weights) for weight in weights]


def kl(first: list[list[float]], second: list[list[float]], temperature: float) -> float:
    """T^2 KL(first || second), mean over the rows."""
    total = 0.0
    for rows in zip(first, second, strict=True):
        p, q = (softmax([value / temperature for value in row]) for row in rows)
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(first)


def cross_entropy(logits: list[list[float]]) -> float:
    labels = BATCH.labels.tolist()
    return -sum(math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)) / SIZE


def learn(method: KDHead, steps: int, first: int = 0) -> list[dict[str, float]]:
    """Terms of steps of gradient descent, each on another batch."""
    found = []
    for step in range(first, first + steps):
        terms = method(BATCH, *outputs(seed=step))
        method.zero_grad()
        sum(terms.values()).backward()
        with torch.no_grad():
            for parameter in method.parameters():
                parameter -= 0.1 * parameter.grad
        found.append({name: term.item() for name, term in terms.items()})
    return found


def test_terms_equal_their_formulas_with_a_head_that_has_learned() -> None:
    method = build(temperature=3.0, ce_weight=0.5, kd_weight=2.0, reverse_weight=0.7)
    learn(method, 3)
    student, teacher = outputs(seed=9)
    terms = method(BATCH, student, teacher)
    ours = student.logits.tolist()
    weight, bias = method.head.weight.detach().numpy(), method.head.bias.detach().numpy()
    theirs = (teacher.embedding.numpy() @ weight.T + bias).tolist()
    expected = {
        "ce": 0.5 * cross_entropy(ours),
        "kd": 2.0 * kl(theirs, ours, 3.0),
        "head_ce": cross_entropy(theirs),
        "reverse": 0.7 * kl(ours, theirs, 3.0),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-10)
    assert not np.allclose(theirs, teacher.logits, atol=0.01)


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_begins_as_the_teachers_classifier_so_that_the_first_step_is_kds(bias: bool) -> None:
    student, teacher = outputs(bias=bias)
    method = build()
    found = method(BATCH, student, teacher)
    assert torch.equal(method.head(teacher.embedding), teacher.logits)
    plain = KD(STUDENT, TEACHER, TASK, temperature=4.0)(BATCH, student, teacher)
    assert {name: found[name].item() for name in plain} == {name: term.item() for name, term in plain.items()}


def test_the_head_learns_from_labels_and_student_and_the_teachers_classifier_stays() -> None:
    method = build()
    _, teacher = outputs()
    before = teacher.classifier.weight.clone()
    terms = [learn(method, 1)[0] for _ in range(20)]
    assert terms[-1]["head_ce"] + terms[-1]["reverse"] < 0.7 * (terms[0]["head_ce"] + terms[0]["reverse"])
    assert torch.equal(teacher.classifier.weight, before)
    assert not torch.allclose(method.head.weight, before, atol=0.01)


def test_neither_net_is_trained_by_the_others_terms() -> None:
    student, teacher = outputs()
    method = build()
    terms = method(BATCH, student, teacher)
    leaves = (student.logits, method.head.weight)
    for name, trained in (("ce", 0), ("kd", 0), ("head_ce", 1), ("reverse", 1)):
        gradients = torch.autograd.grad(terms[name], leaves, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [trained == 0, trained == 1], name


def test_a_head_from_a_checkpoint_goes_on_bit_for_bit() -> None:
    whole, begun, resumed = build(), build(), build()
    expected = learn(whole, 6)
    learn(begun, 3)
    resumed.load_state_dict(begun.state_dict())
    assert learn(resumed, 3, first=3) == expected[3:]
    assert torch.equal(resumed.head.weight, whole.head.weight)
    assert learn(build(), 3, first=3) != expected[3:]


def test_a_teacher_whose_classifier_is_not_linear_is_refused_with_the_reason() -> None:
    odd = NetInfo("odd", "cnn", TEACHER.stages, WIDTH, CLASSES, linear_classifier=False)
    assert "classifier of odd is not one linear layer" in KDHead.supports(STUDENT, odd)
    assert KDHead.supports(odd, TEACHER) is None
