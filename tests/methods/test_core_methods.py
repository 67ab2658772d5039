"""FitNet, OFA-KD, LFCC and CRD: their formulas in NumPy, their theory, and the corners of shapes and batches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import HyperparameterError
from kdbench.method import Batch, Feature, Method, NetInfo, Outputs, StageInfo, Task
from kdbench.methods import crd as crd_module
from kdbench.methods.crd import CRD, ContrastMemory, OtherClassSampler, bank_scores, weighted_rows
from kdbench.methods.fitnet import FitNet, FitNetKD, aligner
from kdbench.methods.lfcc import LFCC, LowPass, contrast_loss
from kdbench.methods.ofa import OFA, PatchMerging, TokenBranch, branch, ofa_loss
from kdbench.nets.tapped import describe
from kdbench.suite.net import NetSpec

CLASSES = 10
METHODS = (FitNet, FitNetKD, OFA, LFCC, CRD)


def net(width: int, grids: list[int], channels: list[int], layout: str, class_tokens: int = 0) -> NetInfo:
    """A net that need not exist."""
    stages = tuple(StageInfo(c, g, g, layout, class_tokens) for c, g in zip(channels, grids, strict=True))
    return NetInfo("made up", "cnn" if layout == "map" else "vit", stages, width, CLASSES)


# Grids as those of the 32 px nets, and narrow, so that the tests are quick.
NETS = {
    "resnet": net(20, [32, 16, 8, 4], [8, 12, 16, 20], "map"),
    "vit": net(12, [8] * 4, [12] * 4, "tokens", 1),
    "mixer": net(10, [8] * 4, [10] * 4, "tokens"),
    "swin": net(48, [16, 8, 4, 2], [6, 12, 24, 48], "tokens"),
    "wide convnext": net(32, [16, 8, 4, 2], [8, 12, 16, 32], "map"),
    "wide vit": net(24, [8] * 4, [24] * 4, "tokens", 1),
    "wide mixer": net(28, [8] * 4, [28] * 4, "tokens"),
    "wide resnet at 64 px": net(32, [64, 32, 16, 8], [8, 12, 16, 32], "map"),
    "vit at 28 px with two class tokens": net(24, [7] * 4, [24] * 4, "tokens", 2),
}
NINE_PAIRS = list(itertools.product(["resnet", "vit", "mixer"], ["wide convnext", "wide vit", "wide mixer"]))
ODD_PAIRS = [
    ("swin", "wide resnet at 64 px"),
    ("swin", "wide vit"),
    ("swin", "swin"),
    ("vit", "swin"),
    ("vit", "vit at 28 px with two class tokens"),
    ("resnet", "vit at 28 px with two class tokens"),
    ("vit at 28 px with two class tokens", "resnet"),
    ("wide convnext", "resnet"),
]


def task(labels: Tensor | None = None) -> Task:
    labels = torch.arange(60) % CLASSES if labels is None else labels
    return Task(CLASSES, len(labels), labels, "digits", 2)


def outputs(net_info: NetInfo, batch: int, leaf: bool, gap: float = 1.0) -> Outputs:
    """Random outputs of a net's shapes; leaves of the graph for a student."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=leaf)

    stages = [
        Feature(
            draw(batch, s.channels, s.height, s.width),
            draw(batch, s.class_tokens, s.channels) if s.class_tokens else None,
            s.layout,
        )
        for s in net_info.stages
    ]
    logits = (torch.randn(batch, CLASSES) * gap).requires_grad_(leaf)
    return Outputs(logits, stages, draw(batch, net_info.embedding_dim))


def batch_of(size: int) -> Batch:
    index = torch.arange(size) * 7 % 60
    return Batch(labels=index % CLASSES, index=index)


def assert_trains(method: Method, batch: Batch, student: Outputs, teacher: Outputs) -> None:
    method.zero_grad()
    terms = method(batch, student, teacher)
    loss = sum(terms.values())
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values()), terms
    loss.backward()
    missing = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing, f"no finite gradient for {missing}"
    reached = [student.logits.grad] + [stage.map.grad for stage in student.stages or ()] + [student.embedding.grad]
    assert any(gradient is not None for gradient in reached[1:])
    assert all(gradient.isfinite().all() for gradient in reached if gradient is not None)


def small_crd(student: NetInfo, teacher: NetInfo, a_task: Task, **settings: float) -> CRD:
    return CRD(student, teacher, a_task, **{"num_negatives": 64, **settings})


# ------------------------------------------------------------------------------------------------ all four methods


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("student", "teacher"), NINE_PAIRS + ODD_PAIRS)
@pytest.mark.parametrize("cls", METHODS)
def test_every_pair_gives_finite_terms_and_gradients(cls: type[Method], student: str, teacher: str, size: int) -> None:
    torch.manual_seed(0)
    first, second = NETS[student], NETS[teacher]
    method = cls(first, second, task(), **({"num_negatives": 64} if cls is CRD else {}))
    assert_trains(method, batch_of(size), outputs(first, size, True), outputs(second, size, False))


@pytest.mark.parametrize("cls", METHODS)
def test_logits_apart_by_a_thousand_give_finite_gradients(cls: type[Method]) -> None:
    torch.manual_seed(0)
    first, second = NETS["vit"], NETS["wide convnext"]
    method = cls(first, second, task())
    assert_trains(method, batch_of(4), outputs(first, 4, True, gap=1e3), outputs(second, 4, False, gap=1e3))


@pytest.mark.parametrize("cls", METHODS)
def test_bfloat16_logits_and_autocast_give_finite_gradients(cls: type[Method]) -> None:
    torch.manual_seed(0)
    first, second = NETS["vit"], NETS["wide convnext"]
    method = cls(first, second, task())
    student, teacher = outputs(first, 4, True), outputs(second, 4, False)
    student.logits = torch.randn(4, CLASSES, dtype=torch.bfloat16, requires_grad=True)
    teacher.logits = teacher.logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert_trains(method, batch_of(4), student, teacher)


@pytest.mark.parametrize("cls", METHODS)
def test_a_method_is_built_on_the_meta_device_with_the_same_shapes(cls: type[Method]) -> None:
    first, second = NETS["vit"], NETS["wide convnext"]
    with torch.device("meta"):
        planned = cls(first, second, task(torch.empty(60, dtype=torch.int64)))
    built = cls(first, second, task())
    assert {k: v.shape for k, v in planned.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}
    assert all(value.is_meta for value in itertools.chain(planned.parameters(), planned.buffers()))


@pytest.mark.parametrize("cls", METHODS)
def test_a_state_dict_round_trip_keeps_the_loss(cls: type[Method]) -> None:
    first, second = NETS["mixer"], NETS["wide vit"]
    torch.manual_seed(0)
    one, other = cls(first, second, task()), cls(first, second, task())
    student, teacher = outputs(first, 4, True), outputs(second, 4, False)
    one(batch_of(4), student, teacher)  # a first step, so that there is state to keep
    other.load_state_dict(one.state_dict())
    torch.manual_seed(1)
    expected = one(batch_of(4), student, teacher)
    torch.manual_seed(1)
    found = other(batch_of(4), student, teacher)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (FitNet, {"fit_weight": -1.0}),
        (FitNetKD, {"temperature": 0.0}),
        (FitNet, {"stages": (0, 1)}),
        (OFA, {"eps": 0.0}),
        (OFA, {"eps": (1.0, 1.0)}),
        (OFA, {"stages": (1, 5)}),
        (OFA, {"temperature": 0.0}),
        (LFCC, {"scales": ()}),
        (LFCC, {"scales": (0,)}),
        (LFCC, {"scales": (64,)}),
        (LFCC, {"kernel": 4}),
        (LFCC, {"contrast_temperature": 0.0}),
        (CRD, {"temperature": 0.0}),
        (CRD, {"momentum": 1.5}),
        (CRD, {"num_negatives": 0}),
        (CRD, {"crd_weight": -0.1}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(cls: type[Method], settings: dict[str, object]) -> None:
    (name, _value) = next(iter(settings.items()))
    with pytest.raises(HyperparameterError, match=name):
        cls(NETS["resnet"], NETS["wide convnext"], task(), **settings)


# ---------------------------------------------------------------------------------------------------------- FitNet


def neighbours(tokens_map: np.ndarray, side: int) -> np.ndarray:
    """(c, h, w) to (c * side^2, h / side, w / side), channels slowest."""
    c, h, w = tokens_map.shape
    blocks = tokens_map.reshape(c, h // side, side, w // side, side)
    return blocks.transpose(0, 2, 4, 1, 3).reshape(c * side**2, h // side, w // side)


def mix(weight: np.ndarray, bias: np.ndarray | None, value: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution, or a linear layer on each position."""
    mixed = np.einsum("oc,chw->ohw", weight.reshape(len(weight), -1), value)
    return mixed if bias is None else mixed + bias[:, None, None]


def spread(value: np.ndarray, side: int) -> np.ndarray:
    """Inverse of ``neighbours``."""
    c, h, w = value.shape
    blocks = value.reshape(c // side**2, side, side, h, w)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(c // side**2, h * side, w * side)


# (student layout, grid), (teacher layout, grid), student prediction, what becomes of the teacher's map
ALIGNERS: dict[str, tuple[tuple[str, int], tuple[str, int], Callable, Callable]] = {
    "map to map": (("map", 4), ("map", 4), lambda x, w, b: mix(w, b, x), lambda t: t),
    "map to fewer tokens": (("map", 8), ("tokens", 4), lambda x, w, b: mix(w, b, neighbours(x, 2)), lambda t: t),
    "map to more tokens": (("map", 4), ("tokens", 8), lambda x, w, b: mix(w, b, x), lambda t: neighbours(t, 2)),
    "tokens to coarser map": (("tokens", 8), ("map", 4), lambda x, w, b: mix(w, b, neighbours(x, 2)), lambda t: t),
    "tokens to finer map": (("tokens", 4), ("map", 8), lambda x, w, b: spread(mix(w, b, x), 2), lambda t: t),
    "to fewer tokens": (("tokens", 8), ("tokens", 4), lambda x, w, b: mix(w, b, neighbours(x, 2)), lambda t: t),
    "to as many tokens": (("tokens", 4), ("tokens", 4), lambda x, w, b: mix(w, b, x), lambda t: t),
    "to more tokens": (("tokens", 4), ("tokens", 8), lambda x, w, b: mix(w, b, x).reshape(-1, 8, 8), lambda t: t),
}


@pytest.mark.parametrize("kind", ALIGNERS)
def test_an_aligner_computes_the_mean_squared_error_of_its_description(kind: str) -> None:
    torch.manual_seed(0)
    (layout_s, grid_s), (layout_t, grid_t), predict, target = ALIGNERS[kind]
    module = aligner(StageInfo(6, grid_s, grid_s, layout_s), StageInfo(5, grid_t, grid_t, layout_t)).double()
    student, teacher = torch.randn(3, 6, grid_s, grid_s).double(), torch.randn(3, 5, grid_t, grid_t).double()
    parameters = {name.rsplit(".")[-1]: value.detach().numpy() for name, value in module.named_parameters()}
    predicted = [predict(x, parameters["weight"], parameters.get("bias")) for x in student.numpy()]
    error = np.stack(predicted) - np.stack([target(t) for t in teacher.numpy()])
    assert module(student, teacher).item() == pytest.approx((error**2).mean(), rel=1e-12)


@pytest.mark.parametrize("layouts", list(itertools.product(["map", "tokens"], repeat=2)))
@pytest.mark.parametrize(("grid_s", "grid_t"), [(7, 4), (4, 7), (6, 4), (1, 3), (3, 1)])
def test_grids_that_do_not_divide_still_align(layouts: tuple[str, str], grid_s: int, grid_t: int) -> None:
    module = aligner(StageInfo(6, grid_s, grid_s, layouts[0]), StageInfo(5, grid_t, grid_t, layouts[1]))
    loss = module(torch.randn(2, 6, grid_s, grid_s), torch.randn(2, 5, grid_t, grid_t))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in module.parameters())


def test_oblong_grids_align() -> None:
    module = aligner(StageInfo(6, 4, 8, "map"), StageInfo(5, 4, 4, "tokens"))
    assert module(torch.randn(2, 6, 4, 8), torch.randn(2, 5, 4, 4)).isfinite()


def test_fitnet_has_zero_loss_and_gradient_where_the_aligned_student_is_the_teacher() -> None:
    twin = NETS["resnet"]
    method = FitNetKD(twin, twin, task())
    for module in method.aligners:
        weight = module.layers[1].weight
        weight.data = torch.eye(len(weight))[:, :, None, None]
    student = outputs(twin, 3, True)
    terms = method(batch_of(3), student, student.detach())
    (terms["fit"] + terms["kd"]).backward()
    assert terms["fit"].item() == 0
    assert terms["kd"].item() == pytest.approx(0, abs=1e-6)
    assert all(not stage.map.grad.any() for stage in student.stages)
    assert student.logits.grad.abs().max() < 1e-6


def test_fitnet_adds_the_chosen_stages_and_ignores_class_tokens() -> None:
    first, second = NETS["vit"], NETS["wide vit"]
    torch.manual_seed(0)
    method = FitNet(first, second, task(), stages=(2, 4), fit_weight=3.0)
    student, teacher = outputs(first, 3, True), outputs(second, 3, False)
    whole = method(batch_of(3), student, teacher)["fit"].item()
    parts = [
        align(student.stages[n - 1].map, teacher.stages[n - 1].map).item()
        for n, align in zip((2, 4), method.aligners, strict=True)
    ]
    assert whole == pytest.approx(3 * sum(parts), rel=1e-6)
    teacher.stages[1].class_tokens += 1
    assert method(batch_of(3), student, teacher)["fit"].item() == whole


# ------------------------------------------------------------------------------------------------------------- OFA


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.eye(classes, dtype=torch.float64)[labels]


def test_ofa_with_exponent_one_has_the_gradient_of_kd() -> None:
    from kdbench.methods.kd import kd_loss

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, dtype=torch.float64)
    student.requires_grad_()
    mask = one_hot(torch.arange(6), 9)
    (by_ofa,) = torch.autograd.grad(ofa_loss(student, teacher, mask, 1.0), student)
    (by_kd,) = torch.autograd.grad(kd_loss(student, teacher, 1.0), student)
    torch.testing.assert_close(by_ofa, by_kd)


def test_ofa_with_exponent_one_is_least_at_the_teacher_where_it_is_its_entropy() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(6, 9, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = ofa_loss(student, teacher, one_hot(torch.arange(6), 9), 1)  # a whole number is one exponent too
    loss.backward()
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-12)
    assert student.grad.abs().max() < 1e-15


def test_ofa_does_not_depend_on_the_order_of_the_batch_or_on_a_shift_of_the_logits() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, dtype=torch.float64)
    labels, order = torch.arange(6), torch.randperm(6)
    loss = ofa_loss(student, teacher, one_hot(labels, 9), 1.5, 2.0)
    permuted = ofa_loss(student[order] + 3, teacher[order] - 5, one_hot(labels[order], 9), 1.5, 2.0)
    torch.testing.assert_close(loss, permuted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [0.5, 1.0, 1.5])
def test_ofa_is_finite_where_a_probability_underflows(dtype: torch.dtype, eps: float) -> None:
    student = torch.tensor([[1e3, 0.0, -1e3], [0.0, 0.0, 1e3]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e3, 0.0, 1e3], [1e3, 0.0, 0.0]], dtype=dtype)
    loss = ofa_loss(student, teacher, torch.eye(3, dtype=dtype)[:2], eps)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


SWIN_P = {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "window_size": 7}
SWIN_N = {**SWIN_P, "embed_dim": 64}
STUDENTS = {
    "resnet18": NetSpec(timm="resnet18"),
    "mobilenetv2": NetSpec(timm="mobilenetv2_100", taps=(1, 2, 3, "final")),
    "deit_tiny": NetSpec(timm="deit_tiny_patch16_224"),
    "swin_pico": NetSpec(timm="swin_tiny_patch4_window7_224", args=SWIN_P),
    "swin_nano": NetSpec(timm="swin_tiny_patch4_window7_224", args=SWIN_N),
    "resmlp": NetSpec(timm="resmlp_12_224"),
}


@pytest.mark.parametrize(
    ("student", "teacher_width", "classes", "expected"),
    [
        ("resnet18", 768, 100, 1_626_256),
        ("resnet18", 384, 100, 1_194_384),
        ("mobilenetv2", 768, 100, 2_529_296),
        ("deit_tiny", 768, 100, 3_783_184),
        ("swin_pico", 768, 100, 14_864_656),
        ("resmlp", 768, 100, 14_938_768),
        ("resnet18", 768, 1000, 4_394_656),
        ("resnet18", 192, 1000, 3_041_184),
        ("deit_tiny", 768, 1000, 4_477_984),
        ("swin_nano", 768, 1000, 28_187_040),
    ],
)
def test_ofa_adds_as_many_parameters_as_the_official_code(
    student: str, teacher_width: int, classes: int, expected: int
) -> None:
    first = describe(STUDENTS[student], classes, student)
    second = net(teacher_width, [56, 28, 14, 7], [96, 192, 384, teacher_width], "tokens")
    with torch.device("meta"):
        method = OFA(first, second, Task(classes, 10, torch.empty(10, dtype=torch.int64)))
    assert sum(p.numel() for p in method.parameters()) == expected


def test_each_ofa_branch_of_resnet18_and_deit_tiny_has_the_official_size() -> None:
    second = net(768, [56, 28, 14, 7], [96, 192, 384, 768], "tokens")
    sizes = {}
    for name in ("resnet18", "deit_tiny"):
        first = describe(STUDENTS[name], 100, name)
        with torch.device("meta"):
            sizes[name] = [sum(p.numel() for p in branch(first, second, n).parameters()) for n in (1, 2, 3, 4)]
    assert sizes["resnet18"] == [411748, 397924, 345700, 470884]
    assert sizes["deit_tiny"] == [1501156, 1056868, 612580, 612580]


def test_patch_merging_joins_neighbours_in_the_official_order() -> None:
    merging = PatchMerging(1, 4, torch.nn.Identity())
    merging.norm = torch.nn.Identity()
    merging.reduction.weight.data = torch.eye(4)
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    assert merging(grid)[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert merging(grid)[0, 1, 1].tolist() == [10, 14, 11, 15]


@pytest.mark.parametrize(
    ("grids", "channels", "width", "class_tokens", "merges"),
    [
        ([56, 28, 14, 7], [4, 8, 16, 32], 32, 0, [3, 2, 1, 0]),
        ([14, 14, 14, 14], [24] * 4, 24, 1, [1, 1, 1, 1]),
        ([8, 8, 8, 8], [32] * 4, 32, 2, [0, 0, 0, 0]),
        ([4, 4, 4, 4], [30] * 4, 30, 1, [0, 0, 0, 0]),
        ([16, 8, 4, 2], [6, 12, 24, 48], 48, 0, [3, 2, 1, 0]),
        ([15, 15, 15, 15], [25] * 4, 25, 1, [1, 1, 1, 1]),
        ([8, 8, 8, 8], [24, 24, 24, 24], 36, 1, [0, 0, 0, 0]),
        ([4, 2, 1, 1], [8, 16, 32, 64], 64, 0, [2, 1, 0, 0]),
    ],
)
def test_a_token_branch_merges_its_grid_and_reads_class_tokens(
    grids: list[int], channels: list[int], width: int, class_tokens: int, merges: list[int]
) -> None:
    student = net(width, grids, channels, "tokens", class_tokens)
    teacher = net(48, [8, 4, 2, 1], [8, 16, 32, 48], "map")
    for number in (1, 2, 3, 4):
        module = branch(student, teacher, number)
        assert isinstance(module, TokenBranch)
        assert len(module.merge) == merges[number - 1]
        logits = module(outputs(student, 2, True).stages[number - 1])
        assert logits.shape == (2, CLASSES)
        logits.sum().backward()
        assert all(p.grad is not None for p in module.parameters())
        assert width % module.blocks[0].attn.num_heads == 0


def test_a_token_branch_reads_class_tokens_when_there_are_any_and_the_mean_otherwise() -> None:
    teacher = net(48, [8, 4, 2, 1], [8, 16, 32, 48], "map")
    for class_tokens in (0, 1):
        module = branch(net(12, [4] * 4, [12] * 4, "tokens", class_tokens), teacher, 4)
        module.blocks = torch.nn.Identity()
        feature = Feature(torch.randn(2, 12, 4, 4), torch.randn(2, 1, 12) if class_tokens else None, "tokens")
        pooled = feature.class_tokens.flatten(1) if class_tokens else feature.tokens.mean(1)
        torch.testing.assert_close(module(feature), module.classifier(pooled))


def test_an_ofa_branch_trains_on_one_image_whose_map_has_one_position() -> None:
    student = net(32, [8, 4, 2, 1], [8, 16, 32, 32], "map")
    method = OFA(student, student, task()).train()
    assert_trains(method, batch_of(1), outputs(student, 1, True), outputs(student, 1, False))


def test_each_ofa_exit_has_its_own_exponent() -> None:
    torch.manual_seed(0)
    first, second = NETS["mixer"], NETS["wide convnext"]
    method = OFA(first, second, task(), stages=(1, 3), eps=(1.0, 2.0, 3.0))
    student, teacher, batch = outputs(first, 4, True), outputs(second, 4, False), batch_of(4)
    terms = method(batch, student, teacher)
    mask = F.one_hot(batch.labels, CLASSES).float()
    exits = [module(student.stages[n - 1]) for n, module in zip((1, 3), method.branches, strict=True)]
    expected = ofa_loss(exits[0], teacher.logits, mask, 1.0) + ofa_loss(exits[1], teacher.logits, mask, 2.0)
    torch.testing.assert_close(terms["ofa"], expected)
    torch.testing.assert_close(terms["kd"], ofa_loss(student.logits, teacher.logits, mask, 3.0))


def test_ofa_takes_the_largest_share_of_mixed_labels_as_target() -> None:
    torch.manual_seed(0)
    first, second = NETS["mixer"], NETS["wide convnext"]
    method = OFA(first, second, task(), eps=2.0)
    student, teacher, batch = outputs(first, 4, True), outputs(second, 4, False), batch_of(4)
    major = (batch.labels + 3) % CLASSES
    batch.targets = 0.3 * F.one_hot(batch.labels, CLASSES) + 0.7 * F.one_hot(major, CLASSES)
    mixed = method(batch, student, teacher)["kd"]
    torch.testing.assert_close(mixed, method(Batch(major, batch.index), student, teacher)["kd"])


# ------------------------------------------------------------------------------------------------------------ LFCC


def contrast_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total, count = 0.0, len(student)
    for i in range(count):
        row = np.array([student[i] @ teacher[j] for j in range(count)]) / temperature
        column = np.array([student[j] @ teacher[i] for j in range(count)]) / temperature
        for logits in (row, column):
            total += -np.log(np.exp(logits[i]) / np.exp(logits).sum())
    return total / (2 * count)


@pytest.mark.parametrize(("size", "temperature"), [(2, 0.07), (5, 0.07), (8, 1.0)])
def test_the_contrast_equals_its_formula(size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(size)
    student, teacher = F.normalize(torch.randn(2, size, 6, generator=generator, dtype=torch.float64), dim=-1)
    expected = contrast_by_hand(student.numpy(), teacher.numpy(), temperature)
    assert contrast_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_the_contrast_of_a_single_sample_is_its_cosine_distance() -> None:
    student, teacher = F.normalize(torch.randn(2, 1, 6), dim=-1)
    torch.testing.assert_close(contrast_loss(student, teacher, 0.07), 1 - (student * teacher).sum())
    torch.testing.assert_close(contrast_loss(student, student, 0.07), torch.tensor(0.0))


def test_the_contrast_does_not_depend_on_the_order_of_the_batch() -> None:
    student, teacher = F.normalize(torch.randn(2, 6, 8, dtype=torch.float64), dim=-1)
    order = torch.randperm(6)
    torch.testing.assert_close(
        contrast_loss(student, teacher, 0.07), contrast_loss(student[order], teacher[order], 0.07)
    )


def test_a_student_equal_to_its_teacher_beats_every_permutation_of_the_batch() -> None:
    twin = NETS["resnet"]
    torch.manual_seed(0)
    method = LFCC(twin, twin, task())
    for space in method.compact:
        space.teacher_linear.load_state_dict(space.student_linear.state_dict())
        space.low_pass.logits.data[:, :, 4] = 40.0  # kernels that pass everything, as the teacher's side does
    teacher = outputs(twin, 3, False)

    def contrast(order: tuple[int, ...]) -> float:
        stages = [Feature(stage.map[list(order)]) for stage in teacher.stages]
        return method(batch_of(3), Outputs(teacher.logits, stages), teacher)["contrast"].item()

    matched = contrast((0, 1, 2))
    assert all(matched < contrast(order) for order in list(itertools.permutations(range(3)))[1:])


def test_a_low_pass_filter_starts_as_a_box_and_keeps_constants() -> None:
    filters = LowPass(3, 2, 3).double()
    value = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    smooth = filters(value)
    assert smooth.shape == (2, 2, 3, 5, 5)
    torch.testing.assert_close(smooth[0, :, :, 2, 2], value[:, :, 1:4, 1:4].mean((2, 3)))
    filters.logits.data.normal_(std=3)
    shift = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(filters(value + shift), filters(value) + shift)


def test_each_channel_and_scale_has_its_own_kernel() -> None:
    torch.manual_seed(0)
    filters = LowPass(3, 2, 3).double()
    filters.logits.data.normal_()
    value = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    padded = np.pad(value[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    kernels = filters.weight.detach().numpy()
    expected = np.zeros((2, 1, 3, 4, 4))
    for f, c, y, x in np.ndindex(2, 3, 4, 4):
        expected[f, 0, c, y, x] = (kernels[c, f] * padded[c, y : y + 3, x : x + 3]).sum()
    np.testing.assert_allclose(filters(value).detach(), expected)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_a_low_pass_filter_weakens_the_highest_frequency_for_any_parameters(kernel: int) -> None:
    torch.manual_seed(0)
    filters = LowPass(200, 1, kernel).double()
    for scale in (0.0, 1.0, 5.0):
        filters.logits.data.normal_().mul_(scale)
        weight = filters.weight.detach()
        sign = (-1.0) ** torch.arange(kernel)
        gain_at_zero = weight.sum((2, 3))
        for wave in (sign[:, None] * sign, sign[:, None].expand(kernel, kernel), sign.expand(kernel, kernel)):
            assert ((weight * wave).sum((2, 3)).abs() < gain_at_zero).all()


def test_lfcc_skips_the_scales_that_a_map_is_too_small_for() -> None:
    first, second = net(32, [8, 4, 2, 1], [8, 8, 8, 8], "map"), net(32, [16, 3, 4, 4], [8, 8, 8, 8], "tokens", 1)
    method = LFCC(first, second, task(), stages=(1, 2, 3, 4))
    assert [space.scales for space in method.compact] == [(1, 2, 4), (1, 2), (1, 2), (1,)]
    assert_trains(method, batch_of(3), outputs(first, 3, True), outputs(second, 3, False))


# ------------------------------------------------------------------------------------------------------------- CRD


def crd_by_hand(
    student: np.ndarray, teacher: np.ndarray, banks: list[np.ndarray], z: list[float] | None, chosen: np.ndarray
) -> tuple[float, list[float]]:
    """CRD's loss, sample by sample; ``banks`` are the student's and the teacher's, updated in place at the end."""
    tau, momentum, rows, negatives = 0.07, 0.5, len(banks[0]), chosen.shape[1] - 1
    sides = [(student, banks[1]), (teacher, banks[0])]
    raw = [
        np.array([[np.exp(bank[j] @ e / tau) for j in line] for e, line in zip(es, chosen, strict=True)])
        for es, bank in sides
    ]
    z = z or [values.mean() * rows for values in raw]
    loss, noise = 0.0, negatives / rows
    for values, normaliser in zip(raw, z, strict=True):
        for line in values / normaliser:
            loss -= np.log(line[0] / (line[0] + noise + 1e-7))
            loss -= sum(np.log(noise / (p + noise + 1e-7)) for p in line[1:])
    for bank, es in zip(banks, (student, teacher), strict=True):
        for j, e in zip(chosen[:, 0], es, strict=True):
            row = momentum * bank[j] + (1 - momentum) * e
            bank[j] = row / np.sqrt((row**2).sum())
    return loss / len(student), z


@pytest.mark.parametrize(("rows", "negatives"), [(20, 5), (20, 64), (300, 2)])
def test_the_contrast_memory_equals_its_formula_over_three_steps(rows: int, negatives: int) -> None:
    torch.manual_seed(0)
    memory = ContrastMemory(rows, 6).double()
    banks, z = [memory.memory_student.numpy().copy(), memory.memory_teacher.numpy().copy()], None
    for _ in range(3):
        student, teacher = F.normalize(torch.randn(2, 4, 6, dtype=torch.float64), dim=-1)
        index = torch.randperm(rows)[:4]
        chosen = torch.cat([index[:, None], torch.randint(rows, (4, negatives))], dim=1)
        expected, z = crd_by_hand(student.numpy(), teacher.numpy(), banks, z, chosen.numpy())
        assert memory(student, teacher, index, chosen).item() == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(memory.memory_student, banks[0])
        np.testing.assert_allclose(memory.memory_teacher, banks[1])
    assert [memory.z_student.item(), memory.z_teacher.item()] == pytest.approx(z, rel=1e-9)


def test_the_gradients_of_the_contrast_memory_equal_finite_differences() -> None:
    torch.manual_seed(0)
    initial = ContrastMemory(30, 5).double()
    index = torch.tensor([3, 8, 20])
    chosen = torch.cat([index[:, None], torch.randint(30, (3, 9))], dim=1)
    initial(*F.normalize(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1), index, chosen)  # sets Z

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        memory = ContrastMemory(30, 5).double()
        memory.load_state_dict(initial.state_dict())
        return memory(student, teacher, index, chosen)

    inputs = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_scoring_against_the_whole_bank_or_the_chosen_rows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, bank, weights = torch.randn(7, 5).double(), torch.randn(40, 5).double(), torch.randn(7, 9).double()
    index = torch.randint(40, (7, 9))
    for limit in (0, 64):
        monkeypatch.setattr(crd_module, "_DENSE_UP_TO", limit)
        scores, fetched = bank_scores(rows, bank, index)
        torch.testing.assert_close(scores, torch.einsum("bmd,bd->bm", bank[index], rows))
        sums = weighted_rows(weights, bank, index, fetched)
        torch.testing.assert_close(sums, torch.einsum("bmd,bm->bd", bank[index], weights))


def test_chunks_of_a_batch_change_neither_loss_nor_gradient_nor_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    initial = ContrastMemory(40, 5).double()
    embeddings = F.normalize(torch.randn(2, 7, 5, dtype=torch.float64), dim=-1)
    index = torch.randperm(40)[:7]
    chosen = torch.cat([index[:, None], torch.randint(40, (7, 9))], dim=1)
    found = []
    for limit, chunk in ((0, 2**26), (0, 100), (64, 2**26), (64, 100)):
        monkeypatch.setattr(crd_module, "_DENSE_UP_TO", limit)
        monkeypatch.setattr(crd_module, "_CHUNK", chunk)
        memory = ContrastMemory(40, 5).double()
        memory.load_state_dict(initial.state_dict())
        student, teacher = embeddings.clone().requires_grad_()
        losses = [memory(student, teacher, index, chosen) for _ in range(2)]
        gradients = torch.autograd.grad(losses[0] + losses[1], [student, teacher])
        found.append([*losses, *gradients, *memory.state_dict().values()])
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(value, expected)


def test_normalisers_of_a_checkpoint_are_kept() -> None:
    torch.manual_seed(0)
    memory, other = ContrastMemory(30, 5).double(), ContrastMemory(30, 5).double()
    index = torch.tensor([3, 8, 20])
    chosen = torch.cat([index[:, None], torch.randint(30, (3, 9))], dim=1)
    inputs = (*F.normalize(torch.randn(2, 3, 5, dtype=torch.float64), dim=-1), index, chosen)
    memory(*inputs)
    other(*inputs)  # sets its own
    other.load_state_dict(memory.state_dict())
    expected = memory.z_student.clone(), memory.z_teacher.clone()
    other(*inputs)
    assert (other.z_student, other.z_teacher) == expected


def test_the_loss_of_the_contrast_memory_does_not_depend_on_the_order_of_the_batch() -> None:
    torch.manual_seed(0)
    memory = ContrastMemory(30, 5).double()
    state = {name: value.clone() for name, value in memory.state_dict().items()}
    student, teacher = F.normalize(torch.randn(2, 4, 5, dtype=torch.float64), dim=-1)
    index, order = torch.tensor([3, 8, 20, 1]), torch.tensor([2, 0, 3, 1])
    chosen = torch.cat([index[:, None], torch.randint(30, (4, 9))], dim=1)
    first = memory(student, teacher, index, chosen)
    banks = memory.memory_student.clone()
    memory.load_state_dict(state)
    torch.testing.assert_close(memory(student[order], teacher[order], index[order], chosen[order]), first)
    torch.testing.assert_close(memory.memory_student, banks)


def test_negatives_are_of_other_classes_and_uniform_over_them() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 4, 1, 2, 4])  # class 3 has no sample
    sampler = OtherClassSampler(labels, 5)
    own = torch.tensor([0, 1, 2, 3, 4])
    draws = sampler(own, 20_000)
    for label, line in zip(own, draws, strict=True):
        counts = torch.bincount(line, minlength=len(labels))
        others = labels != label
        assert not counts[~others].any()
        expected = 20_000 / others.sum()
        assert ((counts[others] - expected).abs() < 6 * expected**0.5).all()


def test_a_data_set_of_one_class_draws_from_all_its_samples() -> None:
    draws = OtherClassSampler(torch.full((5,), 2), 4)(torch.tensor([2, 2]), 500)
    assert draws.unique().tolist() == [0, 1, 2, 3, 4]


def test_crd_draws_more_negatives_than_there_are_samples() -> None:
    first, second = NETS["resnet"], NETS["wide vit"]
    method = CRD(first, second, task())
    assert method.num_negatives > method.task.num_train
    assert_trains(method, batch_of(4), outputs(first, 4, True), outputs(second, 4, False))


def test_crd_trains_the_teachers_projection_but_not_the_teacher() -> None:
    first, second = NETS["resnet"], NETS["wide vit"]
    method = small_crd(first, second, task())
    student, teacher = outputs(first, 4, True), outputs(second, 4, False)
    sum(method(batch_of(4), student, teacher).values()).backward()
    assert method.teacher_linear.weight.grad.any()
    assert teacher.embedding.grad is None


def test_two_crd_steps_may_come_before_their_backward_passes() -> None:
    first, second = NETS["resnet"], NETS["wide vit"]
    method = small_crd(first, second, task())
    student, teacher = outputs(first, 4, True), outputs(second, 4, False)
    losses = [method(batch_of(4), student, teacher)["crd"] for _ in range(2)]
    sum(losses).backward()
    assert student.embedding.grad.isfinite().all()


def run_as_processes(monkeypatch: pytest.MonkeyPatch, works: list[Callable[[], None]]) -> None:
    """Run functions side by side with ``gather_batch`` of CRD joining what they hand in (without gradient)."""
    barrier, parts, rank = threading.Barrier(len(works), timeout=20), [None] * len(works), threading.local()

    def gather(value: Tensor) -> Tensor:
        parts[rank.number] = value
        barrier.wait()
        joint = torch.cat(parts)
        barrier.wait()
        return joint

    def run(number: int) -> None:
        rank.number = number
        works[number]()

    monkeypatch.setattr(crd_module, "gather_batch", gather)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_processes_keep_the_banks_and_normalisers_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    alone, *ranks = [ContrastMemory(30, 5).double() for _ in range(3)]
    for memory in ranks:
        memory.load_state_dict(alone.state_dict())
    student, teacher = F.normalize(torch.randn(2, 6, 5, dtype=torch.float64), dim=-1)
    index = torch.randperm(30)[:6]
    chosen = torch.cat([index[:, None], torch.randint(30, (6, 9))], dim=1)
    inputs = (student, teacher, index, chosen)
    whole = alone(*inputs)
    losses = [torch.zeros(()), torch.zeros(())]

    def work(number: int) -> Callable[[], None]:
        def step() -> None:
            losses[number] = ranks[number](*(value.chunk(2)[number] for value in inputs))

        return step

    run_as_processes(monkeypatch, [work(0), work(1)])
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    for memory in ranks:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(memory.state_dict()[name], value)
