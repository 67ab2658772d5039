"""VkD, SRD, UFD-KD, ScaleKD and locality guidance: their formulas at any shape, and what goes wrong in them elsewhere."""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdbench.method import Batch, NetInfo, Outputs, Task
from kdbench.methods import scalekd
from kdbench.methods.locality import Locality, locality_loss
from kdbench.methods.scalekd import CrossAttentionProjector, ScaleKD, frequency_loss, spatial_loss
from kdbench.methods.srd import SRD, srd_correlation_loss, srd_loss
from kdbench.methods.ufd import UFD, ufd_channel_loss, ufd_loss
from kdbench.methods.vkd import VKD, SemiOrthogonal, vkd_loss
from kdbench.nets.tapped import TappedNet, describe
from kdbench.suite.net import NetSpec, zoo_net

CLASSES = 10
TASK = Task(CLASSES, 100, torch.arange(100) % CLASSES)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gradient(loss: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    source = value.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(source), source)[0]


@functools.cache
def info(name: str) -> NetInfo:
    return describe(zoo_net(name), CLASSES, name)


def nets(teacher: str, student: str, size: int = 3) -> tuple[TappedNet, Batch, Outputs, Outputs]:
    """A frozen teacher, a batch, the student's outputs and the teacher's."""
    taught = TappedNet(zoo_net(teacher), CLASSES, teacher).eval().requires_grad_(False)
    learner = TappedNet(zoo_net(student), CLASSES, student).train()
    images = torch.rand(size, 3, 32, 32)
    needs = {"logits", "stages", "embedding", "stagewise"}
    with torch.no_grad():
        targets = taught(images, needs)
    return taught, Batch(torch.arange(size) % CLASSES, torch.arange(size)), learner(images, needs), targets


# --- formulas, in NumPy ---------------------------------------------------------------------------------------------


def unit(value: np.ndarray, axis: Any) -> np.ndarray:
    return value / np.linalg.norm(value, axis=axis, keepdims=True)


def alone(value: np.ndarray, axes: tuple[int, ...], constant: bool) -> np.ndarray:
    """Only the constant part of a cosine transform over ``axes``, or all but that."""
    frequencies = dctn(value, axes=axes, norm="ortho")
    kept = np.zeros_like(frequencies)
    first = tuple(0 if axis in axes else slice(None) for axis in range(value.ndim))
    kept[first] = frequencies[first]
    return idctn(kept if constant else frequencies - kept, axes=axes, norm="ortho")


def numpy_vkd(s: np.ndarray, t: np.ndarray, weight: np.ndarray) -> float:
    target = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5)
    error = np.abs(s @ weight.T - target)
    return float(np.where(error < 1, error**2 / 2, error - 0.5).mean())


def numpy_z(x: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + eps)


def numpy_srd(s: np.ndarray, t: np.ndarray) -> float:
    return math.log((np.abs(numpy_z(s, 1e-4) - numpy_z(t, 1e-4)) ** 4).sum())


def numpy_srd_correlation(s: np.ndarray, t: np.ndarray) -> float:
    correlation = (numpy_z(s, 0) * numpy_z(t, 0)).mean(0)
    return math.log((np.abs(correlation - 1) ** 4).sum() + 1e-5)


def numpy_ufd(s: np.ndarray, t: np.ndarray, dc: float, ac: float, split: Any, length: Any) -> float:
    terms = (
        ((unit(alone(s, split, constant), length) - unit(alone(t, split, constant), length)) ** 2).sum()
        for constant in (True, False)
    )
    return float(sum(weight * term for weight, term in zip((dc, ac), terms, strict=True)) / len(s))


def resize_axis(value: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Linear interpolation between the centres of cells."""
    old = value.shape[axis]
    place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    share = (place - low).reshape([-1 if a == axis else 1 for a in range(value.ndim)])
    return np.take(value, low, axis) * (1 - share) + np.take(value, np.minimum(low + 1, old - 1), axis) * share


def numpy_locality(s: np.ndarray, t: np.ndarray) -> float:
    for axis in (2, 3):
        size = max(s.shape[axis], t.shape[axis])
        s, t = resize_axis(s, size, axis), resize_axis(t, size, axis)
    return float(((s - t) ** 2).mean())


FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[..., float], list[tuple[tuple[int, ...], ...]]]] = {
    "vkd": (vkd_loss, numpy_vkd, [((5, 7), (5, 13), (13, 7)), ((3, 9), (3, 4), (4, 9)), ((1, 6), (1, 6), (6, 6))]),
    "srd": (srd_loss, numpy_srd, [((2, 3), (2, 3)), ((17, 5), (17, 5)), ((4, 300), (4, 300))]),
    "srd correlation": (srd_correlation_loss, numpy_srd_correlation, [((2, 3), (2, 3)), ((17, 5), (17, 5))]),
    "ufd": (
        lambda s, t: ufd_loss(s, t, 0.3, 0.7),
        lambda s, t: numpy_ufd(s, t, 0.3, 0.7, (2, 3), 1),
        [((1, 5, 7, 7), (1, 5, 7, 7)), ((4, 3, 2, 5), (4, 3, 2, 5))],
    ),
    "ufd channel": (
        lambda s, t: ufd_channel_loss(s, t, 0.3, 0.7),
        lambda s, t: numpy_ufd(s, t, 0.3, 0.7, (1,), (2, 3)),
        [((1, 5, 7, 7), (1, 5, 7, 7)), ((4, 3, 2, 5), (4, 3, 2, 5))],
    ),
    "spatial": (
        spatial_loss,
        lambda s, t: float(((unit(s, 1) - unit(t, 1)) ** 2).sum() / len(s)),
        [((1, 5, 7, 7), (1, 5, 7, 7)), ((4, 3, 2, 5), (4, 3, 2, 5))],
    ),
    "frequency": (
        frequency_loss,
        lambda s, t: numpy_ufd(s, t, 0, 1, (2, 3), 1),
        [((1, 5, 7, 7), (1, 5, 7, 7)), ((4, 3, 2, 5), (4, 3, 2, 5))],
    ),
    "locality": (
        locality_loss,
        numpy_locality,
        [((2, 3, 7, 5), (2, 3, 7, 5)), ((1, 4, 9, 2), (1, 4, 3, 11)), ((2, 3, 1, 1), (2, 3, 4, 5))],
    ),
}
CASES = [(name, shapes) for name, (_, _, all_shapes) in FORMULAS.items() for shapes in all_shapes]


@pytest.mark.parametrize(("name", "shapes"), CASES, ids=lambda value: str(value))
def test_a_loss_and_its_gradient_equal_the_formula_at_any_shape(name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    loss, formula, _ = FORMULAS[name]
    student, *rest = draw(*shapes, seed=len(shapes[0]) + shapes[0][0])
    assert loss(student, *rest).item() == pytest.approx(formula(*(v.numpy() for v in (student, *rest))), rel=1e-9)
    direction = draw(shapes[0], seed=99)[0]
    step = 1e-6
    ahead, behind = (formula(*(v.numpy() for v in (student + sign * step * direction, *rest))) for sign in (1, -1))
    slope = (gradient(lambda source: loss(source, *rest), student) * direction).sum().item()
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in ("vkd", "srd")])
def test_a_loss_is_least_at_the_teacher_and_ignores_the_order_of_the_batch(name: str) -> None:
    loss, _, shapes = FORMULAS[name]
    student, teacher = draw(shapes[-1][0], shapes[-1][0])
    order = torch.randperm(len(student))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    assert loss(teacher, teacher) < loss(student, teacher)
    assert gradient(lambda source: loss(source, teacher), teacher).abs().max() < 1e-9


@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_takes_half_precision_as_single_precision(name: str) -> None:
    loss, _, shapes = FORMULAS[name]
    values = [value.bfloat16() for value in draw(*shapes[0])]
    if name == "vkd":  # whose method leaves autocast
        values = [value.float() for value in values]
    found, expected = loss(*values), loss(*(value.float() for value in values))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# --- vkd ------------------------------------------------------------------------------------------------------------


def moved(rows: int, columns: int) -> SemiOrthogonal:
    """A projection away from its start."""
    module = SemiOrthogonal(rows, columns)
    nn.init.normal_(module.vectors)
    return module


def assert_semi_orthogonal(weight: Tensor, tolerance: float = 1e-5) -> None:
    gram = weight.T @ weight if len(weight) >= weight.shape[1] else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=weight.dtype), rtol=0, atol=tolerance)


SHAPES = [(20, 12), (12, 20), (16, 16)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_projection_is_semi_orthogonal_at_first_and_anywhere(rows: int, columns: int) -> None:
    for module in (SemiOrthogonal(rows, columns), moved(rows, columns)):
        assert module().shape == (rows, columns)
        assert_semi_orthogonal(module())


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_projection_is_the_one_that_torch_parametrises(rows: int, columns: int) -> None:
    module = moved(rows, columns).double()
    official = nn.utils.parametrizations.orthogonal(
        nn.Linear(columns, rows, bias=False), orthogonal_map="householder"
    ).double()
    free = official.parametrizations.weight.original
    below = module.vectors.detach().tril(-1) - torch.eye(*module.vectors.shape)
    with torch.no_grad():
        free.copy_(below.T if rows < columns else below)
        official.parametrizations.weight[0].base.copy_(module.base)
    torch.testing.assert_close(module(), official.weight)
    probe = torch.randn(rows, columns, dtype=torch.float64)
    (module() * probe).sum().backward()
    (official.weight * probe).sum().backward()
    expected = free.grad.T if rows < columns else free.grad
    torch.testing.assert_close(module.vectors.grad, expected)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_projection_stays_orthogonal_under_weight_decay_averages_and_checkpoints(rows: int, columns: int) -> None:
    module, target = SemiOrthogonal(rows, columns), torch.randn(rows, columns)
    start = module().detach()
    average = ModelEmaV3(module, decay=0.7)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.5)
    for _ in range(5):
        optimiser.zero_grad()
        (module() - target).square().sum().backward()
        optimiser.step()
        average.update(module)
    assert (module() - target).norm() < (start - target).norm()
    assert_semi_orthogonal(module())
    assert_semi_orthogonal(average.module())
    assert not torch.allclose(average.module(), module())
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    other = SemiOrthogonal(rows, columns)
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(other(), module())
    assert torch.equal(copy.deepcopy(module)(), module())


def test_projection_and_loss_are_the_same_under_autocast() -> None:
    _, batch, learned, taught = nets("resnet_32px_large", "vit_32px_small")
    method = VKD(info("vit_32px_small"), info("resnet_32px_large"), TASK)
    nn.init.normal_(method.project.vectors)
    plain = method(batch, learned, taught)["vkd"]
    with torch.autocast("cpu", torch.bfloat16):
        weight = method.project()
        reduced = method(batch, learned, taught)["vkd"]
    assert weight.dtype == torch.float32
    assert_semi_orthogonal(weight)
    assert torch.equal(plain, reduced)


def test_vkd_compares_the_mean_position_of_the_student_with_what_the_teachers_classifier_reads() -> None:
    _, batch, learned, taught = nets("mixer_32px_large", "vit_32px_small")
    method = VKD(info("vit_32px_small"), info("mixer_32px_large"), TASK, vkd_weight=3.0)
    tokens = learned.stages[-1].tokens.detach().mean(1)
    weight = method.project().detach()
    expected = 3 * numpy_vkd(tokens.numpy(), taught.embedding.numpy(), weight.numpy())
    assert method(batch, learned, taught)["vkd"].item() == pytest.approx(expected, rel=1e-5)


def test_vkd_does_not_see_the_students_null_space_where_the_teacher_is_narrower() -> None:
    weight = moved(4, 9).double()().detach()
    student, teacher, off = draw((3, 9), (3, 4), (3, 9))
    off = off - off @ weight.T @ weight
    assert off.norm() > 1
    torch.testing.assert_close(vkd_loss(student + off, teacher, weight), vkd_loss(student, teacher, weight))


# --- srd ------------------------------------------------------------------------------------------------------------

SRD_LOSSES = [srd_loss, srd_correlation_loss]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("loss", SRD_LOSSES)
def test_channels_that_are_constant_over_the_batch_are_neither_nan_nor_noise(loss, value, dtype) -> None:
    student, teacher = (v.to(dtype) for v in draw((7, 6), (7, 6)))
    student[:, :2], teacher[:, 1:3] = value, value
    student[::2, 0] *= 1 + torch.finfo(dtype).eps  # constant but for the last bit
    source = student.clone().requires_grad_()
    found = loss(source, teacher)
    found.backward()
    assert found.isfinite()
    assert source.grad.abs().max() < 1e2  # the gradient of rounding noise would be of the order of 1 / eps
    assert not source.grad[:, :2].any()
    rest = [3, 4, 5]
    dead = [0.0, 0.0, 0.0]  # channels of which one side or both are 0
    if loss is srd_correlation_loss:
        correlation = [*dead, *(numpy_z(student[:, rest].numpy(), 0) * numpy_z(teacher[:, rest].numpy(), 0)).mean(0)]
        assert found.item() == pytest.approx(math.log(sum((c - 1) ** 4 for c in correlation) + 1e-5), rel=1e-4)


@pytest.mark.parametrize("loss", SRD_LOSSES)
def test_a_batch_of_one_has_no_statistics_and_contributes_nothing(loss) -> None:
    student, teacher = draw((1, 5), (1, 5))
    assert loss(student, teacher).item() == 0
    assert not gradient(lambda source: loss(source, teacher), student).any()


def test_equal_embeddings_give_a_finite_loss_without_gradient() -> None:
    (teacher,) = draw((6, 4))
    assert srd_loss(teacher, teacher).isfinite()
    assert srd_loss(teacher.float(), teacher.float()).isfinite()
    assert not gradient(lambda source: srd_loss(source, teacher), teacher).any()


def test_the_gradient_of_srd_does_not_depend_on_how_often_the_batch_is_counted() -> None:
    student, teacher = draw((5, 4), (5, 4))
    once = gradient(lambda source: srd_loss(source, teacher), student)
    twice = gradient(lambda source: srd_loss(torch.cat([source, source]), torch.cat([teacher, teacher])), student)
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(
        srd_loss(torch.cat([student, student]), torch.cat([teacher, teacher])), srd_loss(student, teacher) + math.log(2)
    )


@pytest.mark.parametrize("loss", SRD_LOSSES)
def test_srd_ignores_scale_and_shift_of_the_teachers_channels(loss) -> None:
    student, teacher, scale = draw((9, 4), (9, 4), (4,))
    changed = teacher * scale.abs().add(1) * 100 + 3
    assert loss(student, changed).item() == pytest.approx(loss(student, teacher * 100).item(), rel=1e-4)


@pytest.mark.parametrize("variant", ["distance", "correlation"])
def test_the_variants_are_the_two_losses_after_a_linear_layer(variant: str) -> None:
    _, batch, learned, taught = nets("resnet_32px_large", "mixer_32px_small")
    method = SRD(info("mixer_32px_small"), info("resnet_32px_large"), TASK, variant=variant, srd_weight=3.0)
    projected = method.project(learned.stages[-1].tokens.mean(1))
    loss = {"distance": srd_loss, "correlation": srd_correlation_loss}[variant]
    torch.testing.assert_close(method(batch, learned, taught)["srd"], 3 * loss(projected, taught.embedding))


# --- ufd ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 1e4])
@pytest.mark.parametrize(("loss", "axes"), [(ufd_loss, (2, 3)), (ufd_channel_loss, (1,))])
def test_a_deviation_of_the_size_of_rounding_is_zero_and_no_unit_vector(loss, axes, value, dtype) -> None:
    student, teacher = (v.to(dtype) for v in draw((2, 5, 7, 7), (2, 5, 7, 7)))
    constant = student.mean(axes, keepdim=True).mul(value).expand_as(student).contiguous()
    source = constant.clone().requires_grad_()
    found = loss(source, teacher, 0.0, 1.0)
    found.backward()
    vectors = 49 if loss is ufd_loss else 5  # the teacher's alone, each of length 1
    assert found.item() == pytest.approx(vectors, rel=1e-3)
    assert not source.grad.any()
    assert loss(constant, constant * 3, 0.0, 1.0).item() == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7)])
def test_the_mean_counts_once_for_each_position_and_for_each_channel(size: tuple[int, int]) -> None:
    student, teacher = draw((2, 5, *size), (2, 5, *size))
    ours, theirs = (nn.functional.normalize(v.mean((2, 3))) for v in (student, teacher))
    expected = size[0] * size[1] * (ours - theirs).square().sum() / 2
    torch.testing.assert_close(ufd_loss(student, teacher, 1.0, 0.0), expected)
    ours, theirs = (nn.functional.normalize(v.mean(1).flatten(1)) for v in (student, teacher))
    torch.testing.assert_close(ufd_channel_loss(student, teacher, 1.0, 0.0), 5 * (ours - theirs).square().sum() / 2)


def test_ufd_projects_to_the_teachers_grid_twice_and_takes_what_its_classifier_reads_for_the_mean() -> None:
    _, batch, learned, taught = nets("swin_32px_large", "resnet_32px_small")
    student, teacher = info("resnet_32px_small"), info("swin_32px_large")
    method = UFD(student, teacher, TASK, ac_weight=0.0, channel_dc_weight=0.0, channel_ac_weight=0.0).eval()
    tokens = method.spatial(learned.stages[-1].map)
    stage = teacher.stages[-1]
    assert tokens.shape == (3, stage.num_tokens, stage.channels)
    assert method.spatial is not method.channel
    ours, theirs = nn.functional.normalize(tokens.mean(1)), nn.functional.normalize(taught.embedding)
    expected = 0.03 * stage.num_tokens * (ours - theirs).square().sum() / 3
    torch.testing.assert_close(method(batch, learned, taught)["spatial"], expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_whose_classifier_reads_another_width_is_refused_by_ufd() -> None:
    spec = NetSpec(timm="mobilenetv3_small_050", input_size=(64, 64))
    odd = describe(spec, CLASSES, "odd")
    assert odd.stages[-1].channels != odd.embedding_dim
    assert "odd" in UFD.supports(info("vit_32px_small"), odd)
    assert UFD.supports(odd, info("vit_32px_small")) is None


# --- scalekd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "heads", "expected"), [(768, 32, 32), (384, 8, 8), (36, 32, 18), (7, 4, 1)])
def test_a_projector_has_the_largest_number_of_heads_that_divides_the_width(width, heads, expected) -> None:
    assert CrossAttentionProjector(3, width, (2, 2), heads).heads == expected


def test_a_projector_maps_any_grid_to_any_other_and_prefers_given_queries() -> None:
    projector = CrossAttentionProjector(6, 8, (3, 5), 2, student_size=(7, 2))
    (value,) = (v.float() for v in draw((4, 6, 7, 2)))
    assert projector(value).shape == (4, 15, 8)
    queries = torch.randn(4, 9, 8)
    assert projector(value, queries).shape == (4, 9, 8)
    projector(value, queries).sum().backward()
    assert projector.queries.grad is None
    assert CrossAttentionProjector(6, 8, None, 2, student_size=(7, 2)).queries is None


def scalekd_step(monkeypatch, counted: tuple[int, ...], teacher: str = "swin_32px_large") -> tuple[ScaleKD, Outputs]:
    """Backward of the spatial loss alone, of which only the ``counted`` comparisons count: 0 stage 3, 1 stage 4."""
    calls: list[Tensor] = []

    def chosen(ours: Tensor, theirs: Tensor) -> Tensor:
        calls.append(theirs)
        return spatial_loss(ours, theirs) * (len(calls) - 1 in counted)

    monkeypatch.setattr(scalekd, "spatial_loss", chosen)
    frozen, batch, learned, taught = nets(teacher, "resnet_32px_small")
    method = ScaleKD(info("resnet_32px_small"), info(teacher), TASK)
    for stage in learned.stages:
        stage.map.retain_grad()
    method(batch, learned, taught)["spatial"].backward()
    assert torch.equal(*calls[:2]), "both stages are compared with the same map"
    assert all(parameter.grad is None for parameter in frozen.parameters())
    return method, learned


@pytest.mark.parametrize("teacher", ["swin_32px_large", "vit_32px_large", "mixer_32px_large", "resnet_32px_large"])
def test_the_gradient_of_stage_three_runs_back_through_the_frozen_teacher(monkeypatch, teacher: str) -> None:
    method, learned = scalekd_step(monkeypatch, (0,), teacher)
    assert learned.stages[2].map.grad.abs().sum() > 0
    assert method.third[0].value.weight.grad.abs().sum() > 0
    assert method.third[0].queries.grad.abs().sum() > 0


def test_the_queries_of_stage_four_are_the_result_of_stage_three_and_not_detached(monkeypatch) -> None:
    method, learned = scalekd_step(monkeypatch, (1,))
    assert learned.stages[3].map.grad.abs().sum() > 0
    assert method.third[0].queries.grad.abs().sum() > 0
    assert method.fourth[0].queries is None


def test_the_target_is_the_teachers_map_after_its_final_norm() -> None:
    seen = []
    _, batch, learned, taught = nets("swin_32px_large", "mixer_32px_small")
    method = ScaleKD(info("mixer_32px_small"), info("swin_32px_large"), TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scalekd, "spatial_loss", lambda ours, theirs: seen.append(theirs) or ours.sum())
        method(batch, learned, taught)
    torch.testing.assert_close(seen[0].mean((2, 3)), taught.embedding)
    assert not torch.allclose(seen[0], taught.stages[-1].map)


def test_the_teachers_own_third_map_gives_its_final_map() -> None:
    """Class tokens included: were the student's projection perfect, so were the result."""
    _, batch, learned, taught = nets("vit_32px_large", "resnet_32px_small")
    method = ScaleKD(info("resnet_32px_small"), info("vit_32px_large"), TASK, ce_weight=0.0, kd_weight=0.0)
    perfect = taught.stages[2].tokens
    final = taught.stagewise.final(
        taught.stagewise.state_from_map(taught.stages[3].map, taught.stages[3].class_tokens)
    ).map
    for third, fourth in zip(method.third, method.fourth, strict=True):
        third.forward = lambda value: perfect
        fourth.forward = lambda value, queries: queries
    terms = method(batch, learned, taught)
    assert final.abs().sum() > 0
    assert terms["spatial"].item() < 1e-6
    assert terms["frequency"].item() < 1e-6


def test_a_teacher_that_cannot_run_stage_by_stage_is_refused_by_scalekd_with_its_name() -> None:
    spec = NetSpec(timm="densenet121", args={"block_config": (1, 1, 1, 1)}, input_size=(64, 64))
    plain = describe(spec, CLASSES, "dense")
    assert "dense" in ScaleKD.supports(info("vit_32px_small"), plain)
    assert ScaleKD.supports(plain, info("vit_32px_small")) is None


# --- locality -------------------------------------------------------------------------------------------------------


def test_locality_enlarges_each_axis_to_the_greater_of_the_two() -> None:
    student, teacher = draw((2, 3, 9, 2), (2, 3, 3, 11))
    ours, theirs = (nn.functional.interpolate(v, (9, 11), mode="bilinear") for v in (student, teacher))
    torch.testing.assert_close(locality_loss(student, teacher), (ours - theirs).square().mean())


def test_locality_sums_over_its_stages_and_keeps_its_convolutions_in_the_checkpoint() -> None:
    _, batch, learned, taught = nets("resnet_32px_large", "vit_32px_small")
    student, teacher = info("vit_32px_small"), info("resnet_32px_large")
    method = Locality(student, teacher, TASK)
    assert {name.rsplit(".", 1)[0] for name in method.state_dict()} == {"align.0", "align.1", "align.2"}
    assert all(layer.bias is not None for layer in method.align)
    expected = sum(
        locality_loss(align(learned.stages[n - 1].map), taught.stages[n - 1].map)
        for n, align in zip((1, 3, 4), method.align, strict=True)
    )
    torch.testing.assert_close(method(batch, learned, taught)["locality"], 2.5 * expected)
