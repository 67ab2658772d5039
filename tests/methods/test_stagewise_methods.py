"""The methods that run a net stage by stage: prompts inside the teacher (fofa), a net fused from both (tas)."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.blocks import resize_map
from kdbench.errors import HyperparameterError
from kdbench.method import Batch, Feature, NetInfo, Outputs, StageInfo, Task
from kdbench.methods.fofa import FOFA, PatchGrid, Prompt, RegionAttention, SqueezeExcite, ToMap, ToTokens, sinusoids
from kdbench.methods.tas import TAS, LocalToGlobal, _num_heads, _window, info_nce
from kdbench.nets.tapped import TappedNet, describe
from kdbench.suite.net import NetSpec, zoo_net
from tests.few import few

CLASSES = 10
METHODS = {"fofa": FOFA, "tas": TAS}
NARROW: dict[str, dict[str, Any]] = {"fofa": {"dim": 32, "heads": 4}, "tas": {"dim": 32}}
KINDS = {"cnn": "resnet_32px", "vit": "vit_32px", "mlp": "mixer_32px"}
NINE = [(f"{KINDS[t]}_large", f"{KINDS[s]}_small") for t, s in itertools.product(KINDS, KINDS)]
MORE = [
    ("swin_32px_large", "convnext_32px_small"),
    ("convnext_32px_large", "swin_32px_small"),
    ("resmlp_32px_large", "swin_32px_small"),
    ("convnext_32px_large", "resmlp_32px_small"),
]
STUDENT_NEEDS = {"logits", "stages", "embedding", "stagewise"}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@functools.cache
def teacher_net(name: str) -> TappedNet:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TappedNet(zoo_net(name), CLASSES, name).eval().requires_grad_(False)


def student_net(name: str) -> TappedNet:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TappedNet(zoo_net(name), CLASSES, name).train()


def info(name: str) -> NetInfo:
    return describe(zoo_net(name), CLASSES, name)


def task(classes: int = CLASSES) -> Task:
    return Task(classes, 100, torch.arange(100) % classes)


def batch_of(size: int) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(size) % CLASSES
    return torch.rand(size, 3, 32, 32, generator=generator), Batch(labels=labels, index=torch.arange(size))


def outputs(teacher: TappedNet, student: TappedNet, images: Tensor) -> tuple[Outputs, Outputs]:
    with torch.no_grad():
        taught = teacher(images, STUDENT_NEEDS).detach()
    return student(images, STUDENT_NEEDS), taught


def build(name: str, teacher: str, student: str, **arguments: Any) -> Any:
    return METHODS[name](info(student), info(teacher), task(), **{**NARROW[name], **arguments}).train()


def step(
    name: str, teacher: str, student: str, size: int = 3, **arguments: Any
) -> tuple[Any, TappedNet, dict[str, Tensor]]:
    method = build(name, teacher, student, **arguments)
    net = student_net(student)
    images, batch = batch_of(size)
    learned, taught = outputs(teacher_net(teacher), net, images)
    return method, net, method(batch, learned, taught)


@pytest.mark.parametrize(("teacher", "student"), few(NINE + MORE, 3))
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_pair_trains_student_and_method_and_leaves_the_teacher_alone(
    name: str, teacher: str, student: str
) -> None:
    assert METHODS[name].supports(info(student), info(teacher)) is None
    before = {key: value.clone() for key, value in teacher_net(teacher).state_dict().items()}
    method, net, terms = step(name, teacher, student)
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    for module in (method, net):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
    assert all(parameter.grad is None for parameter in teacher_net(teacher).parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher_net(teacher).state_dict().items())


@pytest.mark.parametrize(("teacher", "student"), NINE)
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_pair_runs_at_batch_size_one(name: str, teacher: str, student: str) -> None:
    net = student_net(student).eval()  # the student's own batch norms are not the method's business
    images, batch = batch_of(1)
    learned, taught = outputs(teacher_net(teacher), net, images)
    terms = build(name, teacher, student)(batch, learned, taught)
    loss = sum(terms.values())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("teacher", "student"), [NINE[1], NINE[3]])
def test_methods_are_built_on_the_meta_device_from_shapes_alone(name: str, teacher: str, student: str) -> None:
    with torch.device("meta"):
        labels = Task(CLASSES, 100, torch.zeros(100, dtype=torch.int64))
        planned = METHODS[name](info(student), info(teacher), labels, **NARROW[name])
    real = build(name, teacher, student)
    assert all(value.is_meta for value in planned.parameters())
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_methods_build_for_the_nets_of_the_paper_tables(name: str) -> None:
    mobilenet = NetSpec(timm="mobilenetv2_100", taps=(1, 2, 3, "final"))
    nets = {
        "mobilenetv2_100": mobilenet,
        **{
            timm: NetSpec(timm=timm)
            for timm in (
                "resnet18",
                "deit_tiny_patch16_224",
                "swin_tiny_patch4_window7_224",
                "mixer_b16_224",
                "convnext_tiny",
            )
        },
    }
    infos = {key: describe(spec, 100, key) for key, spec in nets.items()}
    with torch.device("meta"):
        for teacher, student in itertools.product(infos.values(), infos.values()):
            METHODS[name](student, teacher, task(100))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_on_one_repeated_batch(name: str) -> None:
    teacher, student = NINE[3]
    method, net = build(name, teacher, student), student_net(student)
    images, batch = batch_of(8)
    optimiser = torch.optim.AdamW([*method.parameters(), *net.parameters()], lr=1e-3)
    losses = []
    for _ in range(8):
        learned, taught = outputs(teacher_net(teacher), net, images)
        loss = sum(method(batch, learned, taught).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logit_gaps_of_a_thousand_stay_finite(name: str, dtype: torch.dtype) -> None:
    teacher, student = NINE[4]
    method, net = build(name, teacher, student), student_net(student)
    images, batch = batch_of(4)
    learned, taught = outputs(teacher_net(teacher), net, images)
    extreme = torch.full((4, CLASSES), -500.0)
    extreme[torch.arange(4), (batch.labels + 1) % CLASSES] = 500.0
    learned.logits = (learned.logits + extreme).to(dtype)
    taught.logits = extreme.roll(1, dims=1).to(dtype)
    terms = method(batch, learned, taught)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in [*method.parameters(), *net.parameters()] if p.grad is not None)


@pytest.mark.parametrize("name", METHODS)
def test_soft_labels_after_mixup_are_accepted(name: str) -> None:
    teacher, student = NINE[0]
    images, batch = batch_of(4)
    batch.targets = torch.softmax(torch.randn(4, CLASSES), dim=1)
    learned, taught = outputs(teacher_net(teacher), student_net(student), images)
    terms = build(name, teacher, student)(batch, learned, taught)
    torch.testing.assert_close(terms["ce"], batch.task_loss(learned.logits))
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_net_that_cannot_run_stagewise_is_refused_with_its_name(name: str) -> None:
    plain = describe(NetSpec(timm="densenet121", args={"block_config": (1, 1, 1, 1)}, input_size=(64, 64)), 10, "dense")
    reason = METHODS[name].supports(info("vit_32px_small"), plain)
    if name == "fofa":
        assert "dense" in reason
        assert FOFA.supports(plain, info("vit_32px_large")) is None
    else:  # a CNN teacher gives stages 1 to 3, which have run anyway; a CNN student's partner comes last
        assert reason is None
        assert "dense" in TAS.supports(info("resnet_32px_small"), plain)
        assert TAS.supports(plain, info("vit_32px_large")) is None


# ---------------------------------------------------------------- fofa


def numpy_softmax(value: np.ndarray) -> np.ndarray:
    value = np.exp(value - value.max(axis=-1, keepdims=True))
    return value / value.sum(axis=-1, keepdims=True)


def numpy_kl(learner: Tensor, target: Tensor) -> float:
    p, q = numpy_softmax(target.detach().double().numpy()), numpy_softmax(learner.detach().double().numpy())
    return float((p * np.log(p / q)).sum(axis=1).mean())


def numpy_pool(value: np.ndarray, level: int) -> np.ndarray:
    h, w = value.shape[2:]
    return value.reshape(*value.shape[:2], level, h // level, level, w // level).mean(axis=(3, 5))


def numpy_hcl(first: Tensor, second: Tensor) -> float:
    difference = (first - second).detach().double().numpy()
    total, weights = (difference**2).mean(), 1.0
    for level, weight in zip([x for x in (4, 2, 1) if x < difference.shape[2]], (1 / 2, 1 / 4, 1 / 8), strict=False):
        total += weight * (numpy_pool(difference, level) ** 2).mean()
        weights += weight
    return float(total / weights)


def test_region_attention_equals_its_formula() -> None:
    torch.manual_seed(4)
    grid, dim, heads = 2, 8, 2
    stages = [
        StageInfo(3, 8, 8, "map"),
        StageInfo(5, 4, 4, "map"),
        StageInfo(6, 2, 2, "tokens"),
        StageInfo(7, 2, 2, "map"),
    ]
    attention = RegionAttention(stages, grid, dim, heads).double()
    maps = [torch.randn(3, s.channels, s.height, s.width, dtype=torch.float64) for s in stages]
    weights = {key: value.detach().numpy() for key, value in attention.state_dict().items()}

    tokens = []
    for number, value in enumerate(maps):
        kernel, bias = weights[f"patches.{number}.embed.weight"], weights[f"patches.{number}.embed.bias"]
        side = value.shape[2] // grid
        for row, column in itertools.product(range(grid), range(grid)):
            patch = value.numpy()[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            tokens.append(np.einsum("bchw,dchw->bd", patch, kernel) + bias)
    x = np.stack(tokens, axis=1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    q = x @ weights["query.weight"].T + weights["query.bias"]
    k, v = np.split(x @ weights["key_value.weight"].T + weights["key_value.bias"], 2, axis=-1)
    for position, channel in itertools.product(range(x.shape[1]), range(dim)):
        angle = position / 10000 ** (2 * (channel // 2) / dim)
        for value in (q, k):
            value[:, position, channel] += math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    size = dim // heads
    expected = np.concatenate(
        [
            numpy_softmax(q[..., s] @ k[..., s].transpose(0, 2, 1) / math.sqrt(size)) @ v[..., s]
            for s in (slice(h * size, (h + 1) * size) for h in range(heads))
        ],
        axis=-1,
    )
    found = torch.cat(attention(maps), dim=1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # the table of sinusoids is kept in float32


def test_region_attention_of_a_resnet18_has_the_published_size() -> None:
    with torch.device("meta"):
        attention = RegionAttention(describe(NetSpec(timm="resnet18"), 100).stages, 4, 512, 8)
    assert round(sum(p.numel() for p in attention.parameters()) / 1e6, 2) == 13.57


def test_only_the_aligners_are_initialised_as_ofa_does() -> None:
    method = FOFA(info("resnet_32px_small"), info("swin_32px_large"), task(), **NARROW["fofa"])
    aligned = [layer for layer in method.aligners.modules() if isinstance(layer, torch.nn.Linear)]
    assert aligned
    assert all((layer.bias == 0).all() for layer in aligned)
    for layer in (*method.attention.modules(), *method.prompts.modules()):
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            fan_in = layer.weight[0].numel()  # torch's default: uniform within 1 / sqrt(fan in)
            assert layer.weight.abs().max() <= fan_in**-0.5
            assert (layer.bias != 0).any()


def test_region_attention_does_not_depend_on_the_order_of_the_batch() -> None:
    attention = RegionAttention([StageInfo(3, 8, 8, "map")] * 4, 4, 16, 2)
    maps = [torch.randn(5, 3, 8, 8) for _ in range(4)]
    order = torch.randperm(5)
    for tokens, permuted in zip(attention(maps), attention([value[order] for value in maps]), strict=True):
        torch.testing.assert_close(tokens[order], permuted)


def test_positions_differ_between_tokens() -> None:
    table = sinusoids(64, 16)
    assert torch.cdist(table, table).add(torch.eye(64) * 9).min() > 0.1


@pytest.mark.parametrize("size", [(56, 56), (7, 7), (5, 9), (4, 4), (3, 2), (1, 1)])
def test_a_patch_grid_has_its_size_whatever_the_map(size: tuple[int, int]) -> None:
    patches = PatchGrid(3, size, 6, (4, 4))
    assert patches(torch.randn(2, 3, *size)).shape == (2, 6, 4, 4)
    assert patches.embed.kernel_size == (math.ceil(size[0] / 4), math.ceil(size[1] / 4))


@pytest.mark.parametrize("side", [4, 8, 12])
def test_the_map_aligner_equals_resizing_first_at_multiples_of_the_grid(side: int) -> None:
    aligner = ToMap(16, 6, StageInfo(5, side, side, "map"))
    tokens = torch.randn(3, 16, 6)
    large = torch.nn.functional.interpolate(tokens.transpose(1, 2).reshape(3, 6, 4, 4), (side, side))
    mean, var = large.mean((0, 2, 3), keepdim=True), large.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = torch.einsum("bchw,dc->bdhw", (large - mean) / (var + 1e-5).sqrt(), aligner.project.weight[:, :, 0, 0])
    torch.testing.assert_close(aligner(tokens), expected)


def test_the_token_aligner_equals_its_formula() -> None:
    aligner = ToTokens(16, 6, StageInfo(5, 3, 2, "tokens"))
    tokens = torch.randn(4, 16, 6)

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()

    wide = standard(tokens) @ aligner.widen.weight.T + aligner.widen.bias
    spread = standard(wide.transpose(1, 2)) @ aligner.spread.weight.T + aligner.spread.bias
    torch.testing.assert_close(aligner(tokens), spread.reshape(4, 5, 3, 2))


def test_squeeze_and_excitation_gates_its_input_instead_of_returning_the_gate() -> None:
    gate, value = SqueezeExcite(32), torch.randn(2, 32, 5, 5)
    ratio = gate(value) / value
    assert gate(value).shape == value.shape
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert (ratio > 0).all()
    assert (ratio < 1).all()


def test_a_prompt_changes_nothing_at_first_and_varies_over_space_afterwards() -> None:
    prompt = Prompt(StageInfo(8, 6, 6, "map"), StageInfo(12, 3, 3, "map"), feedback=True)
    value, feedback = torch.randn(2, 8, 6, 6), torch.randn(12, 3, 3)
    assert torch.equal(prompt(value, feedback), value)
    with torch.no_grad():
        prompt.beta.fill_(1.0)
    added = prompt(value, feedback) - value
    assert added.std(dim=(2, 3)).min() > 0
    assert not torch.allclose(prompt(value, torch.zeros_like(feedback)), prompt(value, feedback))


@pytest.mark.parametrize("teacher", ["resnet_32px_large", "vit_32px_large", "swin_32px_large", "mixer_32px_large"])
def test_fresh_prompts_leave_the_teacher_as_it_is(teacher: str) -> None:
    method = build("fofa", teacher, "resnet_32px_small")
    _, taught = outputs(teacher_net(teacher), student_net("resnet_32px_small"), batch_of(2)[0])
    maps, logits = method.prompt_teacher(taught)
    torch.testing.assert_close(logits, taught.logits, rtol=0, atol=1e-6)
    for value, stage in zip(maps, taught.stages, strict=True):
        torch.testing.assert_close(value, stage.map, rtol=0, atol=1e-6)


def test_fofa_adds_its_four_terms_as_the_paper_does() -> None:
    teacher, student = NINE[1]
    weights = {"ce_weight": 0.5, "kd_weight": 2.0, "feature_weight": 3.0, "clean_weight": 5.0}
    method = build("fofa", teacher, student, **weights)
    with torch.no_grad():
        for prompt in method.prompts:
            prompt.beta.fill_(0.3)
    images, batch = batch_of(4)
    learned, taught = outputs(teacher_net(teacher), student_net(student), images)
    maps, logits = method.prompt_teacher(taught)
    aligned = method.align([stage.map for stage in learned.stages])
    terms = method(batch, learned, taught)
    terms = {key: value.detach() for key, value in terms.items()}
    assert float(terms["ce"]) == pytest.approx(0.5 * float(batch.task_loss(learned.logits.detach())))
    assert float(terms["kd"]) == pytest.approx(2.0 * numpy_kl(learned.logits, taught.logits), rel=1e-4)
    assert float(terms["clean"]) == pytest.approx(5.0 * numpy_kl(logits, taught.logits), rel=1e-3, abs=1e-6)
    expected = 3.0 * sum(numpy_hcl(*pair) for pair in zip(aligned, maps, strict=True))
    assert float(terms["feature"]) == pytest.approx(expected, rel=1e-4)


def test_the_feature_term_trains_the_prompts_and_the_student() -> None:
    method = build("fofa", *NINE[5])
    with torch.no_grad():
        for prompt in method.prompts:
            prompt.beta.fill_(0.3)
    net = student_net(NINE[5][1])
    images, batch = batch_of(3)
    learned, taught = outputs(teacher_net(NINE[5][0]), net, images)
    method(batch, learned, taught)["feature"].backward()
    assert all(prompt.prompt[0].weight.grad.abs().sum() > 0 for prompt in method.prompts)
    assert all(prompt.beta.grad.abs().sum() > 0 for prompt in method.prompts)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_clean_term_is_zero_for_fresh_prompts_and_has_no_gradient() -> None:
    method, _, terms = step("fofa", *NINE[4])
    assert terms["clean"].detach().abs() < 1e-6
    terms["clean"].backward()
    assert all(prompt.beta.grad.abs().sum() < 1e-4 for prompt in method.prompts)


def test_feedback_is_the_batch_mean_of_the_last_iteration_and_is_saved() -> None:
    teacher, student = NINE[3]
    method, net = build("fofa", teacher, student), student_net(student)
    images, batch = batch_of(4)
    learned, taught = outputs(teacher_net(teacher), net, images)
    assert all(not method.get_buffer(f"feedback_{n}").any() for n in (1, 2, 3, 4))
    aligned = method.align([stage.map for stage in learned.stages])
    method(batch, learned, taught)
    for number, (value, stage) in enumerate(zip(aligned, taught.stages, strict=True), 1):
        expected = (value - stage.map).detach().mean(dim=0)
        torch.testing.assert_close(method.get_buffer(f"feedback_{number}"), expected, rtol=1e-4, atol=1e-5)

    resumed = build("fofa", teacher, student)
    resumed.load_state_dict(method.state_dict())
    with torch.no_grad():
        for m in (method, resumed):
            for prompt in m.prompts:
                prompt.beta.fill_(0.3)
    images, batch = batch_of(2)  # a last, smaller batch
    learned, taught = outputs(teacher_net(teacher), net, images)
    first, second = method(batch, learned, taught), resumed(batch, learned, taught)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_feedback_reaches_the_prompts_and_can_be_switched_off() -> None:
    teacher, student = NINE[3]
    images, batch = batch_of(4)
    learned, taught = outputs(teacher_net(teacher), student_net(student), images)
    for feedback in (True, False):
        torch.manual_seed(5)
        method = build("fofa", teacher, student, feedback=feedback)
        with torch.no_grad():
            for prompt in method.prompts:
                prompt.beta.fill_(0.3)
        before = method(batch, learned, taught)["clean"]
        after = method(batch, learned, taught)["clean"]
        assert (not torch.equal(before, after)) is feedback
        assert any("feedback" in key for key in method.state_dict()) is feedback
        assert any("fuse" in key for key in method.state_dict()) is feedback


def test_feedback_is_not_updated_in_evaluation() -> None:
    teacher, student = NINE[0]
    method = build("fofa", teacher, student).eval()
    images, batch = batch_of(2)
    method(batch, *outputs(teacher_net(teacher), student_net(student), images))
    assert not method.feedback_1.any()


def test_fofa_refuses_senseless_hyperparameters() -> None:
    for arguments, message in (
        ({"queries": 60}, "queries = 60: must be 4 n"),
        ({"queries": 4}, "queries = 4"),
        ({"dim": 30}, "dim = 30: must be even and a multiple of heads = 4"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"clean_weight": -1.0}, "clean_weight = -1.0"),
        ({"heads": 0}, "heads = 0"),
    ):
        with pytest.raises(HyperparameterError, match=message):
            build("fofa", *NINE[0], **arguments)


# ---------------------------------------------------------------- tas


def numpy_info_nce(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    similarity = first @ second.T / temperature
    rows = np.diag(np.log(numpy_softmax(similarity)))
    columns = np.diag(np.log(numpy_softmax(similarity.T)))
    return float(-(rows.mean() + columns.mean()) / 2)


@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
def test_info_nce_equals_its_formula(temperature: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 5))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    found = info_nce(torch.from_numpy(first), torch.from_numpy(second), temperature)
    assert float(found) == pytest.approx(numpy_info_nce(first, second, temperature), rel=1e-9)


def test_info_nce_is_lowest_where_images_meet_themselves_and_zero_for_one_image() -> None:
    units = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    assert info_nce(units, units, 0.1) < info_nce(units, units.roll(1, 0), 0.1)
    order = torch.randperm(6)
    torch.testing.assert_close(info_nce(units[order], units[order], 0.1), info_nce(units, units, 0.1))
    one = units[:1].clone().requires_grad_()
    value = info_nce(one, units[1:2], 0.1)
    value.backward()
    assert value == 0
    assert not one.grad.any()


@pytest.mark.parametrize(
    ("teacher", "student", "last"),
    [
        ("vit_32px_large", "resnet_32px_small", "teacher"),
        ("mixer_32px_large", "convnext_32px_small", "teacher"),
        ("resnet_32px_large", "swin_32px_small", "student"),
        ("convnext_32px_large", "mixer_32px_small", "student"),
        ("resnet_32px_large", "convnext_32px_small", "teacher"),
        ("swin_32px_large", "vit_32px_small", "teacher"),
        ("mixer_32px_large", "vit_32px_small", "teacher"),
    ],
)
def test_the_fusion_net_puts_convolutions_first(teacher: str, student: str, last: str) -> None:
    method = build("tas", teacher, student)
    net = student_net(student).eval()  # no drop-path between the two runs that are compared
    learned, taught = outputs(teacher_net(teacher), net, batch_of(3)[0])
    last_map, logits = method.fuse(learned, taught)
    owner = {"teacher": teacher_net(teacher), "student": net}[last]
    assert method.student_last is (last == "student")
    first = learned if last == "teacher" else taught
    state = owner.stagewise.state_from_map(*method.project(first.stages[2].map))
    state = owner.stagewise.stage(4, state)
    torch.testing.assert_close(state.map, last_map)
    torch.testing.assert_close(owner.stagewise.head(state)[1], logits)


def test_tas_adds_its_seven_terms() -> None:
    teacher, student = NINE[3]
    arguments = {"ce_weight": 0.5, "nce_weight": 2.0, "ofa_weight": 3.0, "eps": 1.5}
    method = build("tas", teacher, student, **arguments)
    images, batch = batch_of(5)
    learned, taught = outputs(teacher_net(teacher), student_net(student), images)
    terms = {key: float(value.detach()) for key, value in method(batch, learned, taught).items()}
    last_map, logits = method.fuse(learned, taught)

    def unit(linear: torch.nn.Linear, value: Tensor) -> np.ndarray:
        out = (value.mean((2, 3)) @ linear.weight.T + linear.bias).detach().double().numpy()
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def ofa(learner: Tensor, target: Tensor) -> float:
        p = numpy_softmax(target.detach().double().numpy())
        mask = np.eye(CLASSES)[batch.labels.numpy()]
        return float(
            -(((p + mask) ** 1.5 - mask) * np.log(numpy_softmax(learner.detach().double().numpy()))).sum(1).mean()
        )

    f = {
        "student": unit(method.embed_student, learned.stages[-1].map),
        "teacher": unit(method.embed_teacher, taught.stages[-1].map),
        "fusion": unit(method.embed_fusion, last_map),
    }
    p = {"student": learned.logits, "teacher": taught.logits, "fusion": logits}
    expected = {"ce": 0.5 * float(batch.task_loss(learned.logits.detach()))}
    for source, learner in (("teacher", "student"), ("teacher", "fusion"), ("fusion", "student")):
        expected[f"nce_{source}_{learner}"] = 2.0 * numpy_info_nce(f[learner], f[source], 0.07)
        expected[f"ofa_{source}_{learner}"] = 3.0 * ofa(p[learner], p[source])
    assert terms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pair", [NINE[3], NINE[1]])
def test_the_fusion_net_is_a_constant_where_the_student_learns_from_it(pair: tuple[str, str]) -> None:
    method, _, terms = step("tas", *pair)
    (terms["nce_fusion_student"] + terms["ofa_fusion_student"]).backward()
    assert all(p.grad is None for p in [*method.project.parameters(), *method.embed_fusion.parameters()])
    assert method.embed_student.weight.grad.any()


def test_the_teachers_lesson_to_the_fusion_net_reaches_the_shared_stages_of_the_student() -> None:
    method, net, terms = step("tas", "vit_32px_large", "resnet_32px_small")
    (terms["nce_teacher_fusion"] + terms["ofa_teacher_fusion"]).backward()
    assert net.net.layer3[0].downsample[0].weight.grad.any()
    assert net.net.layer4[0].downsample[0].weight.grad is None
    assert all(p.grad is not None for p in method.project.parameters())

    method, net, terms = step("tas", "resnet_32px_large", "vit_32px_small")
    (terms["nce_teacher_fusion"] + terms["ofa_teacher_fusion"]).backward()
    assert net.net.blocks[-1].mlp.fc1.weight.grad.any()
    assert net.net.blocks[0].mlp.fc1.weight.grad is None
    assert method.project.class_tokens.grad.any()


@pytest.mark.parametrize("pair", NINE)
def test_batch_norms_of_the_student_see_each_batch_once(pair: tuple[str, str]) -> None:
    _, net, _ = step("tas", *pair)
    counts = [int(value) for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")]
    assert set(counts) <= {1}


def test_temperatures_start_as_asked_stay_within_bounds_and_keep_a_gradient() -> None:
    method = build("tas", *NINE[0], temperature=0.2)
    torch.testing.assert_close(method.temperatures, torch.full((3,), 0.2))
    with torch.no_grad():
        method.raw_temperatures.copy_(torch.tensor([-6.0, 0.0, 6.0]))
    temperatures = method.temperatures
    assert (temperatures > 0.01).all()
    assert (temperatures < 1).all()
    temperatures.sum().backward()
    assert (method.raw_temperatures.grad > 0).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (StageInfo(8, 14, 14, "map"), StageInfo(48, 7, 7, "tokens")),
        (StageInfo(8, 4, 4, "map"), StageInfo(40, 14, 14, "tokens", 2)),
        (StageInfo(8, 9, 5, "tokens"), StageInfo(37, 4, 6, "map")),
        (StageInfo(8, 1, 1, "map"), StageInfo(64, 13, 13, "tokens", 1)),
    ],
)
def test_the_projector_gives_what_the_next_stage_expects(source: StageInfo, target: StageInfo) -> None:
    project = LocalToGlobal(source, target, window=7, head_dim=32)
    value, class_tokens = project(torch.randn(2, source.channels, source.height, source.width))
    assert value.shape == (2, target.channels, target.height, target.width)
    assert (None if class_tokens is None else class_tokens.shape[1]) == (target.class_tokens or None)


def test_windows_divide_the_map_and_heads_divide_the_channels() -> None:
    assert [_window(side, 7) for side in (1, 4, 7, 8, 14, 16, 56, 13, 9)] == [1, 4, 7, 4, 7, 4, 7, 7, 7]
    assert [_num_heads(channels, 32) for channels in (16, 32, 96, 100, 384)] == [1, 1, 3, 2, 12]


def test_tas_refuses_senseless_hyperparameters() -> None:
    for arguments in (
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"eps": 0.0},
        {"nce_weight": -1.0},
        {"dim": 0},
        {"window": 0},
    ):
        ((name, value),) = arguments.items()
        with pytest.raises(HyperparameterError, match=f"{name} = {value!r}"):
            build("tas", *NINE[0], **arguments)


def test_teachers_of_another_size_and_no_images_of_the_student_are_needed() -> None:
    """A teacher at 64 px beside a student at 32 px."""
    spec = NetSpec(timm="vit_32px_large", args={"img_size": 64}, input_size=(64, 64))
    teacher = TappedNet(spec, CLASSES, "teacher").eval().requires_grad_(False)
    student = student_net("resnet_32px_small")
    images, batch = batch_of(2)
    learned, taught = outputs(teacher, student, images)
    learned.images = None
    for name, cls in METHODS.items():
        method = cls(info("resnet_32px_small"), describe(spec, CLASSES), task(), **NARROW[name])
        assert all(torch.isfinite(term) for term in method(batch, learned, taught).values())
    assert isinstance(taught.stages[0], Feature)
    assert resize_map(taught.stages[0].map, (1, 1)).shape[2:] == (1, 1)
