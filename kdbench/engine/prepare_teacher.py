"""What makes a teacher ready before any student is trained: it is trained here, or its weights are loaded and measured again."""

from __future__ import annotations

import kdbench.engine.process  # isort: skip  # noqa: F401 - first, so that its message comes before a traceback

import time
from collections.abc import Sequence

import torch

from kdbench.data.images import Images
from kdbench.data.transforms import EvaluationView
from kdbench.data.views import view_of
from kdbench.engine import parallel
from kdbench.engine.evaluation import predict_all
from kdbench.engine.numerics import set_numerics
from kdbench.engine.saver import Emit
from kdbench.engine.teacher import check_finite, freeze, load_teacher
from kdbench.engine.train import train_teacher, write_teacher
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Plan
from kdbench.matrix.teachers import TeacherPlan
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.metrics import measure
from kdbench.store.folders import Store
from kdbench.store.result import Weights, scores
from kdbench.suite.dataset import DatasetSpec
from kdbench.teachers.foreign import load_state
from kdbench.teachers.weights import check_file, find_weights


def prepare_teacher(
    plan: Plan,
    teacher: TeacherPlan,
    store: Store,
    device: torch.device,
    emit: Emit,
) -> None:
    """Train a teacher, load the weights that it comes with, or join it from others, and write its folder.

    Raises:
        KdbenchError: if it cannot be trained, or its weights are missing, are others than expected, or do not fit.
    """
    weights: Weights | None = None
    notes: list[str] = []
    if teacher.net.ensemble:
        begun = time.monotonic()
        net = _join(plan, teacher, store)
        made = f"joined from {', '.join(part.name for part in teacher.teachers)}"
    elif teacher.net.weights == "train":
        train_teacher(plan, teacher, store, device, emit)
        return
    else:
        found = find_weights(teacher.name, teacher.net, plan.request.weights_folder)
        sha256 = check_file(found)
        assert found.path is not None
        origin = {"origin": found.origin, "file": str(found.path), "file_sha256": sha256}
        if teacher.trained_here:
            train_teacher(plan, teacher, store, device, emit, found.path, Weights(**origin))
            return
        begun = time.monotonic()
        net = TappedNet(teacher.net, plan.num_classes, teacher.name)
        used = load_state(net, found.path, *rows_of(plan.suite.dataset), say=notes.append)
        weights = Weights(**origin, **used)
        made = f"weights of {found.path} loaded"
    for text in notes if parallel.is_first() else ():
        emit({"event": "warning", "cell": teacher.name, "reason": text})
    plan.catalog.load_metrics()
    dataset = plan.dataset(teacher.split)
    split = dataset.measured(teacher.split, plan.under.measured_images_per_class)
    metrics = measure_teacher(plan, teacher, freeze(net.to(device)), split, device)
    if not parallel.is_first():
        return
    folder = store.teacher_folder(teacher)
    folder.configure(teacher.hash, teacher.config, {})
    write_teacher(plan, teacher, store, dataset, net, scores(metrics), device, weights)
    folder.failed.unlink(missing_ok=True)
    folder.say("; ".join((f"{made}, top-1 {metrics['top1']:.2f}", *notes)))
    emit({"event": "done", "cell": teacher.name, "top1": metrics["top1"], "seconds": time.monotonic() - begun})


def _join(plan: Plan, teacher: TeacherPlan, store: Store) -> TappedNet:
    """The ensemble of nets that are prepared."""
    net = TappedNet(teacher.net, plan.num_classes, teacher.name)
    for member, part in zip(net.net.members, teacher.teachers, strict=True):
        member.net.load_state_dict(load_teacher(part, store, plan.num_classes, torch.device("cpu"))[0].net.state_dict())
    return net


def remeasure(plan: Plan, teacher: TeacherPlan, store: Store, device: torch.device) -> dict[str, float]:
    """Measure a prepared teacher once more, on the images on which it was measured. Writes nothing.

    Raises:
        KdbenchError: if it is not prepared, or its weights are damaged.
    """
    net, _ = load_teacher(teacher, store, plan.num_classes, device)
    dataset = plan.dataset(teacher.split)
    return measure_teacher(
        plan, teacher, net, dataset.measured(teacher.split, plan.under.measured_images_per_class), device
    )


def measure_teacher(
    plan: Plan, teacher: TeacherPlan, net: TappedNet, split: Images, device: torch.device
) -> dict[str, float]:
    """Accuracies of a teacher on a split, seen as ``teacher_view`` says."""
    set_numerics(teacher.recipe, plan.request)
    logits = predict_all(
        lambda images: net(images).logits, split, teacher_view(plan, teacher), device, plan.request.loaders
    )
    check_finite(teacher.name, logits)
    return measure(logits, split.labels.to(device))


def teacher_view(plan: Plan, teacher: TeacherPlan) -> EvaluationView:
    """What a teacher sees when it is measured for itself.

    A teacher that comes with weights sees timm's own evaluation transform with its own crop, whatever recipe trains the
    students: that is how its published figure was measured.
    """
    own = {} if teacher.trained_here else {"eval_crop": None, "pipeline": "exact"}
    return view_of(plan.suite.dataset.image_size, teacher.net, teacher.recipe.model_copy(update=own))


def rows_of(dataset: DatasetSpec) -> tuple[Sequence[int] | None, int | None]:
    """Which rows of an ImageNet-1K classifier are a suite's classes, and the number of all; None where it has no such choice.

    Classes that are numbered anew are numbered in the order of their WNIDs, which is that of timm's classifiers too.

    Raises:
        KdbenchError: for chosen classes of which some are ImageNet-1K's and some are not.
    """
    chosen = dataset.class_list
    if chosen is None or dataset.labels == "kept":
        return None, None
    from timm.data import ImageNetInfo

    position = {wnid: row for row, wnid in enumerate(ImageNetInfo().label_names())}
    foreign = [name for name in chosen if name not in position]
    if len(foreign) == len(chosen):
        return None, None
    if foreign:
        raise KdbenchError(f"dataset.classes: {foreign[0]!r} is no WNID of ImageNet-1K, as others of the list are")
    return [position[wnid] for wnid in sorted(chosen)], len(position)
