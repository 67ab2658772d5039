"""Loss functions against the values that the official codes give (tests/golden), two of them against their formulas.

A case of ``losses.json`` names a module, a function, its positional inputs (arrays of ``inputs.npz``, or an expression
of ``onehot`` and ``argmax`` over them) and its keyword arguments. ``grad_norm`` holds the norm of the gradient by the
first input, and by the second where there are two numbers.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.methods.kd import kd_loss
from kdbench.methods.ofa import ofa_loss

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "losses.json").read_text())
with np.load(FOLDER / "inputs.npz") as _archive:
    INPUTS = {name: _archive[name] for name in _archive.files}

TOLERANCE = 1e-9


def resolve(expression: str) -> Tensor:
    """``name``, ``argmax(name)`` or ``onehot(...)`` of them."""
    head, bracket, rest = expression.partition("(")
    if not bracket:
        return torch.from_numpy(INPUTS[head].copy())
    inner = resolve(rest.removesuffix(")"))
    if head == "argmax":
        return inner.argmax(dim=1)
    assert head == "onehot", f"unknown expression {expression}"
    return torch.eye(INPUTS["logit_s"].shape[1], dtype=torch.float64)[inner]


def name_of(case: dict) -> str:
    settings = "-".join(f"{key}={value}" for key, value in case["kwargs"].items())
    return f"{case['function']}-{'-'.join(case['inputs'][2:])}-{settings}"


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=name_of)
def test_loss_and_its_gradient_equal_those_of_the_official_code(case: dict) -> None:
    function = getattr(importlib.import_module(f"kdbench.methods.{case['module']}"), case["function"])
    inputs = [resolve(expression) for expression in case["inputs"]]
    sources = [value.requires_grad_() for value, _ in zip(inputs, case["grad_norm"], strict=False)]
    loss = function(*inputs, **case["kwargs"])
    gradients = torch.autograd.grad(loss, sources)
    assert loss.item() == pytest.approx(case["value"], rel=TOLERANCE)
    norms = [gradient.norm().item() for gradient in gradients]
    assert norms == pytest.approx(case["grad_norm"], rel=TOLERANCE)


def test_contrast_memory_equals_the_official_code_over_two_steps() -> None:
    golden = GOLDEN["crd"]
    memory_class = getattr(importlib.import_module("kdbench.methods.crd"), golden["class_"])
    memory = memory_class(golden["num_samples"], golden["dim"], golden["temperature"], golden["momentum"]).double()
    memory.memory_student.copy_(resolve("crd_memory_v1"))
    memory.memory_teacher.copy_(resolve("crd_memory_v2"))
    student, teacher = resolve("crd_es").requires_grad_(), resolve("crd_et").requires_grad_()
    index, contrast_index = resolve("crd_idx"), resolve("crd_contrast_idx")

    first = memory(student, teacher, index, contrast_index)
    gradients = torch.autograd.grad(first.sum(), [student, teacher])
    found = {
        "step1": first.item(),
        "z_student": memory.z_student.item(),
        "z_teacher": memory.z_teacher.item(),
        "grad_norm_student": gradients[0].norm().item(),
        "grad_norm_teacher_embedding": gradients[1].norm().item(),
        "memory_student_sum_after": memory.memory_student.sum().item(),
        "memory_teacher_sum_after": memory.memory_teacher.sum().item(),
        "step2": memory(student, teacher, index, contrast_index).item(),
    }
    assert found == pytest.approx({name: golden[name] for name in found}, rel=TOLERANCE)
    assert memory.z_student.item() == found["z_student"], "Z is frozen after the first batch"


# The formulas once more, in NumPy and with the derivative by the student's logits worked out by hand.


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def kd_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum() / len(p), temperature * (q - p) / len(p)


def ofa_by_hand(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, eps: float, temperature: float
) -> tuple[float, np.ndarray]:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    weights = p**eps
    own = np.arange(len(p)), labels
    weights[own] = (1 + p[own]) ** eps - 1
    value = -(weights * np.log(q)).sum() / len(p)
    return value, (weights.sum(axis=1, keepdims=True) * q - weights) / (temperature * len(p))


SHAPES = [(1, 2), (1, 10), (5, 3), (16, 100), (3, 1000)]
TEMPERATURES = [0.5, 1.0, 2.0, 4.0, 20.0]


def draw_logits(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(shape[0] * 1009 + shape[1])
    student, teacher = generator.normal(scale=3, size=(2, *shape))
    return student, teacher, generator.integers(shape[1], size=shape[0])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kd_loss_equals_its_formula_at_every_shape_and_temperature(shape: tuple[int, int], temperature: float) -> None:
    student, teacher, _ = draw_logits(shape)
    value, gradient = kd_by_hand(student, teacher, temperature)
    source = torch.from_numpy(student).requires_grad_()
    loss = kd_loss(source, torch.from_numpy(teacher), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=TOLERANCE)
    np.testing.assert_allclose(source.grad, gradient, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("eps", [0.5, 1.0, 1.1, 1.5, 3.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ofa_loss_equals_its_formula_at_every_shape_temperature_and_exponent(
    shape: tuple[int, int], temperature: float, eps: float
) -> None:
    student, teacher, labels = draw_logits(shape)
    value, gradient = ofa_by_hand(student, teacher, labels, eps, temperature)
    source = torch.from_numpy(student).requires_grad_()
    mask = torch.eye(shape[1], dtype=torch.float64)[torch.from_numpy(labels)]
    loss = ofa_loss(source, torch.from_numpy(teacher), mask, eps, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=TOLERANCE)
    np.testing.assert_allclose(source.grad, gradient, rtol=1e-8, atol=1e-14)
