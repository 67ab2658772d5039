"""The checks of a method's behaviour. Each is a function of a class and a pair that raises or yields ``Wrong``."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.conformance.bench import BATCH, CLASSES, SAMPLES, Pair, Trial, sample, with_logits
from kdbench.conformance.building import built, shapes_of
from kdbench.conformance.findings import Wrong, one_line
from kdbench.conformance.watch import Given, Reads, marks
from kdbench.method import Method, Outputs
from kdbench.nets.tapped import state_hash

#: Steps within which the loss of one repeated batch must have fallen, and by which share of its size.
STEPS, FALL = 40, 0.01
#: Factor by which a loss term may change between batches of 8 and of 128: the root of their ratio.
SCALE = 4.0
#: Difference of logits at which everything must stay finite.
GAP = 1000.0
#: Margin of a sure student's logit above the rest: in single precision 1 - p rounds to 0, up to a temperature of 7.
SURE = 120.0


def one_step(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    """One forward and backward pass, and everything that it must reach or leave alone."""
    trial = built(cls, pair)
    data = sample()
    with trial.stream.active():
        student, teacher = trial.student_outputs(data), trial.teacher_outputs(data)
        given = Given(data, student, teacher)
        shapes, hashed = shapes_of(trial.method), state_hash(trial.teacher)
        before = {"student": marks(trial.student), "teacher": marks(trial.teacher)}
        terms = trial.terms(data, student, teacher)
        if not any(term.requires_grad for term in terms.values()):
            raise Wrong(
                "student",
                "no loss term depends on the student; compute the terms from student outputs without detach()",
            )
        written = given.written()
        if written:  # before the backward pass, which may raise for the same reason
            yield Wrong("in place", f"{written[0]} was changed in place; clone before writing")
            return
        trial.backward(terms)
        for epoch in trial.method.phases:  # a parameter may be trained in a later one alone
            later = trial.terms(sample(epoch=epoch))
            if list(later) != list(terms) or not any(term.requires_grad for term in later.values()):
                raise Wrong(
                    "terms",
                    f"the terms of the phase from epoch {epoch} are {', '.join(later)}; return the names of the first, {', '.join(terms)}, "
                    "and let one at least depend on the student",
                )
            trial.backward(later)
    if shapes_of(trial.method) != shapes:
        yield Wrong("build", "forward created or replaced parameters, buffers or modules; create them all in __init__")
    for net, mark in before.items():
        changed = [name for name, value in marks(getattr(trial, net)).items() if value != mark[name]]
        if changed and (net, changed[0]) != ("teacher", "train or eval mode"):
            yield Wrong("global state", f"forward changed the {net}'s {changed[0]}; leave the nets as they are")
    yield from _after_backward(trial, hashed)
    with trial.stream.active():
        again, mixed = trial.terms(sample(start=BATCH)), trial.terms(sample(mixed=True))
    if list(again) != list(terms):
        raise Wrong(
            "terms",
            f"the terms are {', '.join(terms)} in one step, {', '.join(again)} in the next; always return the same",
        )
    if list(mixed) != list(terms):
        raise Wrong("terms", "the names of the terms change with labels after mixup; return the same names always")


def _after_backward(trial: Trial, teacher_hash: str) -> Iterator[Wrong]:
    backbone = list(trial.backbone())
    if not any(p.grad is not None and bool(p.grad.ne(0).any()) for _, p in backbone):
        yield Wrong(
            "student",
            "no gradient reaches the student's backbone; compute a term from the student's outputs without detach()",
        )
    guard = "guard roots, logarithms and divisions at 0"
    for name, parameter in trial.student.net.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            yield Wrong("student", f"the gradient of the student's {name} is not finite; {guard}")
            break
    if any(parameter.grad is not None for parameter in trial.teacher.parameters()):
        yield Wrong("teacher", "the teacher received a gradient; do not unfreeze its parameters")
    if any(module.training for module in trial.teacher.modules()):
        yield Wrong("teacher", "the teacher was put into train mode; leave its mode alone")
    if state_hash(trial.teacher) != teacher_hash:
        yield Wrong("teacher", "a parameter or buffer of the teacher changed; never write to the teacher")
    in_groups = {id(p) for group in trial.optimizer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trial.method.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in in_groups:
            yield Wrong("parameters", f"parameter {name} is in no group of the optimiser; create it in __init__")
        elif parameter.grad is None:
            yield Wrong(
                "parameters",
                f"parameter {name} gets no gradient; use it in a loss term, or make it a buffer or requires_grad=False",
            )
        elif not bool(parameter.grad.isfinite().all()):
            yield Wrong("parameters", f"the gradient of parameter {name} is not finite; {guard}")


def batch_of_one(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    trial = Trial(cls, pair)
    advice = "relations need a second sample and batch statistics more than one value: give them a value for one"
    with _finite(trial, "batch of one", "on a single image", advice):
        terms = trial.terms(sample(1))
        trial.backward(terms)
    with trial.stream.active():
        usual = trial.terms(sample())
    if list(usual) != list(terms):
        yield Wrong(
            "batch of one",
            f"the terms are {', '.join(usual)}, for one image {', '.join(terms)}; return the same names always",
        )


def batch_size(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    found = terms_by_batch(cls, pair, BATCH, SAMPLES)
    for name in sorted(set(cls.follows_batch) - set(found)):
        yield Wrong("batch size", f"follows_batch names {name!r}, the terms are {', '.join(found)}")
    for name, (small, large) in found.items():
        seen = f"loss term {name!r} is {large:.3g} in a batch of {SAMPLES} and {small:.3g} in batches of {BATCH}"
        follows = not 1 / SCALE < large / small < SCALE
        if follows and name not in cls.follows_batch:
            yield Wrong("batch size", f"{seen}; divide by what grows with the batch, or name the term in follows_batch")
        elif name in cls.follows_batch and not follows:
            yield Wrong("batch size", f"{seen}; take it out of follows_batch")


def terms_by_batch(cls: type[Method], pair: Pair, small: int, large: int) -> dict[str, tuple[float, float]]:
    """Absolute values of the loss terms on the same samples, in batches of ``small`` (their mean) and in one of ``large``.

    Terms that are nothing beside the others are left out.
    """
    means: list[dict[str, float]] = []
    for size in (small, large):
        trial = Trial(cls, pair)
        with trial.stream.active():
            steps = [trial.terms(sample(size, start)) for start in range(0, large, size)]
        values = [{name: abs(float(term.detach())) for name, term in terms.items()} for terms in steps]
        means.append({name: sum(value[name] for value in values) / len(values) for name in values[0]})
    least = 1e-6 * sum(means[0].values())
    return {name: (before, means[1][name]) for name, before in means[0].items() if before > least}


def learning(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    trial = Trial(cls, pair)
    data = sample()
    start = copy.deepcopy(trial.stream.state_dict())
    first = last = 0.0
    for number in range(STEPS):
        trial.stream.load_state_dict(start)  # the same draws in every step: a repeated batch, not only repeated images
        last = float(sum(term.double() for term in trial.step(data).values()))
        first = last if number == 0 else first
        if last < first - FALL * abs(first):
            return
    yield Wrong(
        "learning",
        f"the loss is {first:.4g} at first and {last:.4g} after {STEPS} steps on one batch; check what is detached "
        "and gradients written by hand",
    )


def extreme_logits(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    advice = "use log_softmax and not log(softmax), and take products and powers in float32"
    labels = sample().batch.labels
    sure = {"student": GAP * F.one_hot(labels, CLASSES), "teacher": GAP * F.one_hot((labels + 1) % CLASSES, CLASSES)}
    for dtype in (torch.float32, torch.bfloat16):
        for who in (("student", "teacher"), ("teacher",)):
            trial = Trial(cls, pair)
            data = sample()
            nets = {"student": trial.student_outputs(data), "teacher": trial.teacher_outputs(data)}
            changed: dict[str, Any] = {}
            for name, outputs in nets.items():
                push = sure[name] if name in who else 0
                changed[name] = outputs and with_logits(outputs, push, dtype)
            kind = str(dtype).removeprefix("torch.")
            with _finite(trial, "logits", f"with {kind} logits {GAP:g} apart", advice):
                trial.backward(trial.terms(data, changed["student"], changed["teacher"]))
    yield from ()


def sure_student(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    advice = "take log(1 - p) as a logsumexp over the other classes, and log_softmax instead of log(softmax)"
    trial = Trial(cls, pair)
    data = sample()
    # In the bias, so that class maps are as sure as the logits; right for some images, wrong for others.
    with torch.no_grad():
        for classifier in trial.student.classifiers:
            bias: Any = classifier.bias
            bias[data.batch.labels[0]] += SURE
    with _finite(trial, "sure student", f"with a student logit {SURE:g} above the rest", advice):
        trial.backward(trial.terms(data))
    yield from ()


def precision(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    advice = "bring tensors to one dtype before they meet, and take what needs precision in float32"
    trial = Trial(cls, pair)
    with _finite(trial, "precision", "under autocast to bfloat16", advice):
        with torch.autocast("cpu", torch.bfloat16):
            terms = trial.terms(sample())
        trial.backward(terms)
    yield from ()


def state(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    wrong = partial(Wrong, "state")
    trial = Trial(cls, pair)
    for number in range(2):
        trial.step(sample(start=number * BATCH))
    buffer = io.BytesIO()
    try:
        torch.save(trial.method.state_dict(), buffer)
        saved = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:
        raise wrong(
            f"its state_dict cannot be saved and loaded ({one_line(error)}); keep only tensors in it", error
        ) from error
    other = Trial(cls, pair, seed=1)
    other.student.load_state_dict(trial.student.state_dict())
    other.stream.load_state_dict(copy.deepcopy(trial.stream.state_dict()))
    try:
        other.method.load_state_dict(saved)
    except Exception as error:
        raise wrong(
            f"a fresh instance cannot load its state_dict ({one_line(error)}); give every buffer its shape in __init__",
            error,
        ) from error
    for data in (sample(start=2 * BATCH), sample(start=3 * BATCH)):
        pair_of_terms = []
        for instance in (trial, other):
            with instance.stream.active():
                pair_of_terms.append(instance.terms(data))
        if not _equal(*pair_of_terms):
            yield wrong(
                "after loading its state_dict the loss differs; keep all that it depends on in parameters and buffers"
            )
            return
    if not torch.equal(_prediction(trial, sample()), _prediction(other, sample())):
        yield wrong(
            "after loading its state_dict the prediction differs; keep all that predict uses in parameters and buffers"
        )


def seeds(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    wrong = partial(Wrong, "seed")
    first, second = Trial(cls, pair), Trial(cls, pair)
    if not _equal(first.method.state_dict(), second.method.state_dict()):
        yield wrong("two instances from one seed differ; draw initial values from torch's default generator only")
        return
    for number in range(2):
        data = sample(start=number * BATCH)
        if not _equal(first.step(data), second.step(data)):
            yield wrong(
                "the same seed gives another loss; draw from the default generators, and let nothing depend on time, "
                "id() or the order of sets"
            )
            return
    other = Trial(cls, pair, seed=1)
    for trial in (first, other):
        trial.step(sample())
    if torch.equal(first.stream.state_dict()["torch"], other.stream.state_dict()["torch"]):
        yield wrong("forward seeds torch's generator; never call manual_seed, each cell has its own stream")


def prediction(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    wrong = partial(Wrong, "prediction")
    trial = Trial(cls, pair)
    trial.step(sample())
    for size in (BATCH, 1):
        try:
            logits = _prediction(trial, sample(size))
        except Exception as error:
            raise wrong(
                f"predict raised {one_line(error)}; use only what predict_needs names, and no teacher", error
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (size, CLASSES):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            yield wrong(f"predict returned {shape} for {size} images; return logits of shape (B, C)")
            return
        if not bool(logits.isfinite().all()):
            yield wrong("predict returned values that are not finite; check the buffers that it uses")
            return


def waiting(cls: type[Method], pair: Pair) -> Iterator[Wrong]:
    trial = Trial(cls, pair)
    data = sample()
    with trial.stream.active():
        trial.terms(data)  # what is copied once, at the first step, may wait
        student, teacher = trial.student_outputs(data), trial.teacher_outputs(data)
        with Reads() as reads:
            trial.method(data.batch, student, teacher)
    if reads.found:
        yield Wrong(
            "waiting",
            f"forward calls {', '.join(sorted(reads.found))}, which waits for the device; stay in tensors "
            "(torch.where, masks as factors) and on the device of what you get",
        )


def _prediction(trial: Trial, data: Any) -> Tensor:
    """Logits as the engine predicts: eval mode, no gradient, no teacher."""
    modes = trial.student.training
    trial.student.eval()
    trial.method.eval()
    try:
        with torch.no_grad(), trial.stream.active():
            outputs: Outputs = trial.student(data.images, frozenset(trial.method.predict_needs))
            return trial.method.predict(outputs)
    finally:
        trial.student.train(modes)
        trial.method.train()


@contextlib.contextmanager
def _finite(trial: Trial, check: str, situation: str, advice: str) -> Iterator[None]:
    """Report wrong terms and gradients that are not finite after the block under ``check``."""
    try:
        with trial.stream.active():
            yield
    except Wrong as error:
        seen = error.advice.split("; ")[0]
        raise Wrong(check, f"{seen}: {situation}; {advice}", error.__cause__) from error
    named = (*trial.student.net.named_parameters(prefix="student"), *trial.method.named_parameters(prefix="method"))
    for name, parameter in named:
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise Wrong(check, f"the gradient of {name} is not finite {situation}; {advice}")


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


Check = Callable[[type[Method], Pair], Iterator[Wrong]]

#: What every supported pair must pass, and what one, two or three pairs show (each family once on each side).
ON_EVERY_PAIR: Sequence[tuple[str, Check]] = (("terms", one_step), ("batch of one", batch_of_one))
ON_SOME_PAIRS: Sequence[tuple[str, Check, int]] = (
    ("batch size", batch_size, 1),
    ("learning", learning, 3),
    ("logits", extreme_logits, 2),
    ("sure student", sure_student, 3),
    ("precision", precision, 3),
    ("state", state, 2),
    ("seed", seeds, 1),
    ("prediction", prediction, 3),
    ("waiting", waiting, 3),
)
