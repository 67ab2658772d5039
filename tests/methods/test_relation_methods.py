"""Relation methods (cc, rkd, sp, pkt, rsd) against NumPy transcriptions of their formulas, and against theory."""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.distributed import rows_of
from kdbench.errors import HyperparameterError
from kdbench.method import Batch, Feature, NetInfo, Outputs, StageInfo, Task
from kdbench.methods import rkd as rkd_module
from kdbench.methods.cc import CC, cc_loss
from kdbench.methods.dist import DIST
from kdbench.methods.mlld import MLLD
from kdbench.methods.pkt import PKT, pkt_loss
from kdbench.methods.rkd import RKD, rkd_loss, rkd_terms
from kdbench.methods.rsd import RSD, rsd_loss
from kdbench.methods.sp import SP, sp_loss
from kdbench.plugins.registry import catalog

torch.set_num_threads(1)

METHODS = (CC, RKD, SP, PKT, RSD)
CLASSES, STUDENT_WIDTH, TEACHER_WIDTH = 5, 6, 9


def info(width: int = STUDENT_WIDTH) -> NetInfo:
    return NetInfo("net", "cnn", (StageInfo(width, 2, 2, "map"),) * 4, embedding_dim=width, num_classes=CLASSES)


def build(method: type, student: NetInfo | None = None, teacher: NetInfo | None = None, **hyperparameters):
    torch.manual_seed(0)
    task = Task(CLASSES, 20, torch.arange(20) % CLASSES)
    return method(student or info(), teacher or info(TEACHER_WIDTH), task, **hyperparameters)


def vectors(batch: int = 6, width: int = STUDENT_WIDTH, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=generator, dtype=torch.float64)


def make_batch(size: int = 6) -> Batch:
    return Batch(labels=torch.arange(size) % CLASSES, index=torch.arange(size))


def outputs(batch: int, width: int, seed: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Outputs:
    embedding, logits = vectors(batch, width, seed).to(dtype), vectors(batch, CLASSES, seed + 1).to(dtype)
    value = vectors(batch, 4 * width, seed + 2).to(dtype).view(batch, width, 2, 2)
    for tensor in (embedding, logits, value):
        tensor.requires_grad_(grad)
    return Outputs(logits=logits, embedding=embedding, stages=[Feature(value)] * 4)


def gradient(function, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    student = student.detach().clone().requires_grad_()
    value = function(student)
    value.backward()
    return value.detach(), student.grad


# NumPy transcriptions, entry by entry.


def numpy_cc(student, teacher):
    delta = np.abs(student - teacher)
    return np.mean([delta[i] @ delta[i + 1] for i in range(len(delta) - 1)])


def smooth_l1(a, b):
    return np.mean([0.5 * d * d if d < 1 else d - 0.5 for d in np.abs(np.asarray(a) - np.asarray(b)).ravel()])


def numpy_rkd(student, teacher, distance_weight=25.0, angle_weight=50.0):
    def relations(x):
        n = len(x)
        pairs, triples = list(itertools.product(range(n), repeat=2)), itertools.product(range(n), repeat=3)
        length = {(i, j): float(np.linalg.norm(x[i] - x[j])) for i, j in pairs}
        distances = np.array([0.0 if i == j else max(length[i, j], 1e-6) for i, j in pairs])
        unit = {(k, i): (x[i] - x[k]) / max(length[k, i], 1e-12) for k, i in pairs}
        angles = [unit[k, i] @ unit[k, j] for k, i, j in triples]
        return distances / distances[distances > 0].mean(), angles

    (distances_s, angles_s), (distances_t, angles_t) = relations(student), relations(teacher)
    return distance_weight * smooth_l1(distances_s, distances_t) + angle_weight * smooth_l1(angles_s, angles_t)


def numpy_sp(student, teacher):
    def rows(x):
        gram = np.array([[np.sum(a * b) for b in x] for a in x])
        return gram / np.maximum(np.linalg.norm(gram, axis=1, keepdims=True), 1e-12)

    return np.sum((rows(teacher) - rows(student)) ** 2) / len(student) ** 2


def numpy_pkt(student, teacher):
    eps = 1e-7

    def rows(x):
        unit = [row / (np.linalg.norm(row) + eps) for row in x]
        similarity = np.array([[(a @ b + 1) / 2 for b in unit] for a in unit])
        return similarity / similarity.sum(1, keepdims=True)

    p, q = rows(teacher), rows(student)
    return np.mean(p * np.log((p + eps) / (q + eps)))


def numpy_rsd(student, teacher, kappa=0.01):
    def standard(x):
        return [(column - column.mean()) / (column.std() + 1e-5) for column in x.T]

    total = 0.0
    for i, a in enumerate(standard(teacher)):
        for j, b in enumerate(standard(student)):
            r = a @ b / len(student)
            total += (r - 1) ** 2 if i == j else kappa * r**2
    return total


#: name -> (loss, its NumPy transcription, width of the teacher)
LOSSES = {
    "cc": (cc_loss, numpy_cc, STUDENT_WIDTH),
    "rkd": (rkd_loss, numpy_rkd, TEACHER_WIDTH),
    "sp": (sp_loss, numpy_sp, TEACHER_WIDTH),
    "pkt": (pkt_loss, numpy_pkt, TEACHER_WIDTH),
    "rsd": (rsd_loss, numpy_rsd, STUDENT_WIDTH),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


@every_loss
@pytest.mark.parametrize("batch", [2, 3, 7])
def test_loss_equals_its_formula_written_in_numpy(name, batch):
    loss, expected, width = LOSSES[name]
    student, teacher = vectors(batch, seed=1), vectors(batch, width, 2)
    assert loss(student, teacher).item() == pytest.approx(expected(student.numpy(), teacher.numpy()), rel=1e-10)


@every_loss
def test_gradient_of_loss_is_that_of_its_finite_differences(name):
    loss, _, width = LOSSES[name]
    teacher = vectors(5, width, 2)
    assert torch.autograd.gradcheck(lambda student: loss(student, teacher), (vectors(5, seed=1).requires_grad_(),))


@pytest.mark.parametrize("name", ["cc", "rkd", "sp", "pkt"])
def test_student_equal_to_teacher_has_zero_loss_and_zero_gradient(name):
    teacher = vectors()
    value, slope = gradient(lambda student: LOSSES[name][0](student, teacher), teacher)
    assert value.abs() < 1e-12
    assert slope.abs().max() < 1e-7


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt", "rsd"])
def test_order_of_the_batch_changes_nothing(name):
    loss, _, width = LOSSES[name]
    student, teacher = vectors(seed=1), vectors(6, width, 2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_a_thousand_apart_give_finite_loss_and_gradient(name, dtype):
    loss, _, width = LOSSES[name]
    student = vectors(seed=1).to(dtype)
    student[0] = 1e3
    student[1] = -1e3
    for first, second in ((student, vectors(6, width, 2)), (vectors(6, seed=1), student.new_ones(6, width) * 1e3)):
        teacher = second.to(dtype)
        value, slope = gradient(lambda value, teacher=teacher: loss(value, teacher), first.to(dtype))
        assert value.isfinite()
        assert slope.isfinite().all()


@every_loss
def test_bfloat16_embeddings_give_the_loss_of_the_same_numbers_in_full_precision(name):
    loss, _, width = LOSSES[name]
    student, teacher = vectors(seed=1).bfloat16(), vectors(6, width, 2).bfloat16()
    expected = loss(student.double(), teacher.double())
    torch.testing.assert_close(loss(student, teacher).double(), expected, rtol=1e-4, atol=1e-6)


@every_loss
def test_mixed_precision_does_not_reach_into_the_loss(name):
    loss, _, width = LOSSES[name]
    student, teacher = vectors(seed=1).float(), vectors(6, width, 2).float()

    def mixed(student):
        with torch.autocast("cpu", torch.bfloat16):
            return loss(student, teacher)

    mixed_results, expected = gradient(mixed, student), gradient(lambda student: loss(student, teacher), student)
    assert all(map(torch.equal, mixed_results, expected))


@every_loss
def test_zero_and_repeated_samples_give_finite_gradients(name):
    loss, _, width = LOSSES[name]
    student, teacher = vectors(seed=1), vectors(6, width, 2)
    student[0] = 0
    student[2] = student[1]
    teacher[3] = 0
    teacher[5] = teacher[4]
    value, slope = gradient(lambda student: loss(student, teacher), student)
    assert value.isfinite()
    assert slope.abs().max() < (1e8 if name == "pkt" else 1e3)  # PKT's own slope at 0 is that of x / (|x| + 1e-7)
    assert value.item() == pytest.approx(LOSSES[name][1](student.numpy(), teacher.numpy()), rel=1e-8)
    assert loss(torch.zeros(6, STUDENT_WIDTH), teacher.float()).isfinite()


@pytest.mark.parametrize(("name", "expected"), [("cc", 0.0), ("rkd", 0.0), ("sp", 0.0), ("pkt", 0.0), ("rsd", 6.0)])
def test_single_sample_gives_the_known_value_and_a_zero_gradient(name, expected):
    loss, _, width = LOSSES[name]
    value, slope = gradient(lambda student: loss(student, vectors(1, width, 2)), vectors(1, seed=1))
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert slope.abs().max() < 1e-9


# One by one


def test_cc_depends_on_the_order_of_the_batch():
    student = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    teacher = torch.zeros(4, 1)
    assert cc_loss(student, teacher).item() == pytest.approx(1 / 3)
    assert cc_loss(student[[0, 2, 1, 3]], teacher).item() == 0


def test_rkd_ignores_rotation_shift_and_scale_of_the_embeddings():
    student = vectors(seed=1)
    rotation = torch.linalg.qr(vectors(STUDENT_WIDTH, seed=3)).Q
    moved = 3.7 * student @ rotation + 11.0
    distance, angle = rkd_terms(moved, student)
    assert distance.item() == pytest.approx(0.0, abs=1e-12)
    assert angle.item() == pytest.approx(0.0, abs=1e-12)
    stretched = rkd_terms(student * torch.arange(1.0, 7.0), student)
    assert min(stretched).item() > 1e-3


def test_rkd_in_parts_is_rkd_at_once(monkeypatch):
    student, teacher = vectors(9, seed=1), vectors(9, TEACHER_WIDTH, 2)
    whole = gradient(lambda value: rkd_loss(value, teacher), student)
    monkeypatch.setattr(rkd_module, "_MAX_ANGLES", 2 * 81)
    parts = gradient(lambda value: rkd_loss(value, teacher), student)
    torch.testing.assert_close(parts, whole)


def test_rkd_holds_no_tensor_of_all_differences(monkeypatch):
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    student = vectors(8, 1000, 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rkd_loss(student, vectors(8, 500, 2)).backward()
    assert max(sizes) == 8 * 1000  # the embedding itself; 8 * 8 * 1000 would be the differences


def test_rkd_of_nearly_equal_samples_is_accurate_in_single_precision():
    student, teacher = (vectors(seed=1) + 5).float(), vectors(6, TEACHER_WIDTH, 2).float()
    student[1] = student[0] + 1e-4
    expected = numpy_rkd(student.double().numpy(), teacher.double().numpy())
    assert rkd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-3)


def test_sp_ignores_the_scale_of_a_map_and_takes_maps_of_any_shape():
    student, teacher = vectors(6, 48, 1).view(6, 3, 4, 4), vectors(6, 28, 2).view(6, 7, 2, 2)
    torch.testing.assert_close(sp_loss(5.0 * student, teacher), sp_loss(student, teacher))
    torch.testing.assert_close(sp_loss(student, teacher), sp_loss(student.flatten(1), teacher.flatten(1)))


def test_pkt_ignores_the_length_of_each_embedding():
    student, teacher = vectors(seed=1), vectors(6, TEACHER_WIDTH, 2)
    lengths = torch.arange(1.0, 7.0, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(pkt_loss(lengths * student, teacher), pkt_loss(student, teacher), rtol=1e-5, atol=0)


def test_pkt_of_opposite_embeddings_is_finite():
    student = torch.tensor([[0.1, 0.7], [-0.1, -0.7], [0.3, 2.1]])
    value, slope = gradient(lambda student: pkt_loss(student, torch.eye(3)), student)
    assert value.isfinite()
    assert slope.isfinite().all()


def test_rsd_is_least_at_a_teacher_of_uncorrelated_dimensions_up_to_their_scale_and_shift():
    teacher = torch.linalg.qr(vectors(40, 4, 3) - vectors(40, 4, 3).mean(0)).Q
    teacher = teacher - teacher.mean(0)
    student = teacher * torch.tensor([1.0, 20.0, 3.0, 0.5], dtype=torch.float64) + 7.0
    value, slope = gradient(lambda student: rsd_loss(student, teacher), student)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert slope.abs().max() < 1e-3
    assert rsd_loss(-student, teacher).item() == pytest.approx(16.0, rel=1e-3)  # every R_ii is -1
    assert rsd_loss(student[:, [1, 0, 2, 3]], teacher, kappa=0.5).item() == pytest.approx(2 + 2 * 0.5, rel=1e-3)


def test_rsd_projector_updates_its_statistics_except_for_a_single_sample():
    method = build(RSD)
    before = method.norm.running_mean.clone()
    method.project(torch.ones(1, STUDENT_WIDTH))
    assert torch.equal(method.norm.running_mean, before)
    method.project(torch.rand(4, STUDENT_WIDTH))
    assert not torch.equal(method.norm.running_mean, before)


# All of them as methods


@every_method
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_method_gives_finite_scalar_terms_and_gradients_for_any_batch(method, size, dtype):
    module = build(method)
    student = outputs(size, STUDENT_WIDTH, 1, dtype, grad=True)
    terms = module(make_batch(size), student, outputs(size, TEACHER_WIDTH, 7, dtype))
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    tapped = student.stages[-1].map if method is SP else student.embedding
    gradients = [tapped.grad, *(parameter.grad for parameter in module.parameters())]
    assert all(value is not None and value.isfinite().all() for value in gradients)
    if size > 1:
        assert all(value.abs().max() > 0 for value in gradients)


@pytest.fixture(scope="module")
def nets():
    """Six small nets by family: (student, its description), (teacher, its description)."""
    from kdbench.nets.tapped import TappedNet
    from kdbench.suite.net import zoo_net

    torch.manual_seed(0)
    families = {"cnn": "resnet", "vit": "vit", "mlp": "mixer"}
    built = {}
    for (family, name), size in itertools.product(families.items(), ("small", "large")):
        net = TappedNet(zoo_net(f"{name}_32px_{size}"), CLASSES)
        nn.init.normal_(net.classifier.weight)  # timm's mixers begin with zeros, which no gradient passes
        built[family, size] = net.eval(), net.describe()
    return built


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("student", "teacher"), [*itertools.product(("cnn", "vit", "mlp"), repeat=2)])
def test_methods_run_on_every_kind_of_pair_and_their_gradient_reaches_the_student(nets, student, teacher, size):
    (student_net, student_info), (teacher_net, teacher_info) = nets[student, "small"], nets[teacher, "large"]
    images = torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    needs = {"logits", "stages", "embedding"}
    seen = student_net(images, needs)
    with torch.no_grad():
        wanted = teacher_net(images, needs)
    for method in METHODS:
        student_net.zero_grad()
        terms = build(method, student_info, teacher_info)(make_batch(size), seen, wanted)
        sum(terms.values()).backward(retain_graph=True)
        assert all(term.isfinite() for term in terms.values()), method.name
        first = next(student_net.parameters())
        assert first.grad.isfinite().all(), method.name
        assert first.grad.abs().max() > 0, method.name


@every_method
def test_method_takes_its_hyperparameters_from_the_catalogue_on_every_data_set(method):
    entry = catalog().find(method.name)
    assert entry.family == "relation"
    for dataset in ("cifar100", "cifar100-32", "imagenet1k", "digits"):
        build(method, **entry.resolve(dataset))


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        *((method, "ce_weight", -1.0) for method in METHODS),
        (CC, "dim", 0),
        (CC, "cc_weight", -0.02),
        (RKD, "angle_weight", math.inf),
        (SP, "sp_weight", -3000.0),
        (PKT, "pkt_weight", math.nan),
        (RSD, "expansion", 0),
        (RSD, "kappa", -0.01),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(method, name, value):
    with pytest.raises(HyperparameterError, match=name):
        build(method, **{name: value})


@every_method
def test_method_can_be_built_without_memory(method):
    with torch.device("meta"):
        method(info(), info(TEACHER_WIDTH), Task(CLASSES, 20, torch.empty(20, dtype=torch.int64)))


# Several processes


class TinyStudent(nn.Module):
    """Stands for a net: its gradient is what several processes must agree on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(10, STUDENT_WIDTH, dtype=torch.float64)
        self.head = nn.Linear(STUDENT_WIDTH, CLASSES, dtype=torch.float64)

    def forward(self, inputs: torch.Tensor) -> Outputs:
        embedding = self.body(inputs).tanh()
        logits = self.head(embedding)
        strong = Outputs(logits=self.head(embedding.flip(1)))
        return Outputs(logits, [Feature(embedding[:, :, None, None])] * 4, embedding, strong=strong)


def train_step(method: type, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss terms and gradients for some rows of a fixed batch of 8."""
    inputs, wanted = vectors(8, 10, 1)[rows], vectors(8, TEACHER_WIDTH, 2)[rows]
    logits, strong = vectors(8, CLASSES, 3)[rows], vectors(8, CLASSES, 4)[rows]
    teacher = Outputs(logits, [Feature(wanted[:, :, None, None])] * 4, wanted, strong=Outputs(strong))
    module = build(method).double()
    student = TinyStudent()
    terms = module(Batch(rows % CLASSES, rows), student(inputs), teacher)
    sum(terms.values()).backward()
    both = nn.ModuleDict({"student": student, "method": module})
    buffers = {name: buffer.double() for name, buffer in both.named_buffers()}
    return terms, {name: parameter.grad for name, parameter in both.named_parameters()} | buffers


DISTRIBUTED = (*METHODS, DIST, MLLD)


def work(rank: int, folder: str) -> None:
    """One of two processes: steps on its half of the batch, then averages gradients as DDP does."""
    torch.set_num_threads(1)
    if os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for method in DISTRIBUTED:
        terms, gradients = train_step(method, rows_of(rank, 2, 8))
        for value in (averaged := {k: v.detach().clone() for k, v in (terms | gradients).items()}).values():
            torch.distributed.all_reduce(value)
        found[method.name] = {name: value / 2 for name, value in averaged.items()}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one_on_the_joint_batch(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    for method in DISTRIBUTED:
        terms, gradients = train_step(method, torch.arange(8))
        for name, value in (terms | gradients).items():
            torch.testing.assert_close(
                found[method.name][name], value.detach(), msg=lambda text, m=method, n=name: f"{m.name}, {n}: {text}"
            )
