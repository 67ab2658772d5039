"""Hours of a plan on hardware that is not here, from counted operations and an assumed share of a GPU's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.forecast.fit import training_images
from kdbench.forecast.time import JobEstimate, disk_bytes, measured_images, wall_time
from kdbench.matrix.cells import Cohort, Plan
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.folders import Store
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe

#: Operations of a multiply-add; forward passes that forward and backward together are worth.
OPERATIONS, TRAINING = 2, 3
#: Shares of the peak that training is assumed to reach, by precision: from nets of depthwise convolutions to large products.
#: Cohorts of ResNet-50 to DeiT-Tiny reached 0.31 in float32 and 0.05 in bfloat16 on an H200 (results/benchmarks/gpu.json).
_LARGE = {"float32": (0.2, 0.6), "bfloat16": (0.05, 0.4), "float16": (0.05, 0.4)}
#: Of small images, whose kernels do not fill a GPU: 0.12 to 0.27, and 0.013 to 0.028, there.
_SMALL = {"float32": (0.08, 0.3), "bfloat16": (0.01, 0.05), "float16": (0.01, 0.05)}
#: Pixels from which images are not small.
_SIDE = 64
MOST_GPUS = 4096
#: Bytes that weight, gradient and the two states of Adam take per parameter.
TRAINED_BYTES = 16


@dataclass(frozen=True)
class Profile:
    """A GPU as its vendor's data sheet has it.

    Attributes:
        memory: in GB.
        tera: 10¹² operations per second by precision, dense; of float32 without TF32.
    """

    title: str
    memory: float
    tera: Mapping[str, float]


PROFILES = {
    "a100": Profile("A100 SXM", 80, {"float32": 19.5, "bfloat16": 312, "float16": 312}),
    "h100": Profile("H100 SXM", 80, {"float32": 67, "bfloat16": 989, "float16": 989}),
    "h200": Profile("H200 SXM", 141, {"float32": 67, "bfloat16": 989, "float16": 989}),
    "rtx4090": Profile("RTX 4090", 24, {"float32": 82.6, "bfloat16": 165, "float16": 165}),
    # without units for bfloat16
    "v100": Profile("V100 SXM2", 32, {"float32": 15.7, "bfloat16": 15.7, "float16": 125}),
}


@dataclass(frozen=True)
class Range:
    """From so many seconds to so many."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Foretold:
    """What a plan would take. ``jobs``: teachers that are trained, then cohorts, by name."""

    profile: Profile
    workers: int
    jobs: Mapping[str, Range]
    wall: Range
    compute: Range
    disk_bytes: int
    trained_bytes: int
    shares: Mapping[str, tuple[float, float]]


def find_profile(text: str) -> tuple[Profile, int]:
    """``"h100x8"``: the profile, and the number of GPUs.

    Raises:
        KdbenchError: for an unknown name or an impossible number.
    """
    name, count = text, "1"
    if name not in PROFILES:
        name, _, count = text.rpartition("x")
    if name not in PROFILES or not count.isascii() or not count.isdecimal():
        raise UnknownNameError("profile", text, [*PROFILES, *(f"{known}x8" for known in PROFILES)], "--for")
    if len(count) > 4 or not 1 <= int(count) <= MOST_GPUS:
        raise KdbenchError(f"--for {text}: {count} GPUs; expected 1 to {MOST_GPUS}")
    return PROFILES[name], int(count)


def foretell(plan: Plan, cohorts: Sequence[Cohort], store: Store, profile: Profile, workers: int) -> Foretold:
    """Hours of what is left of a plan on ``workers`` GPUs. Nothing is timed, and no data is read.

    Counted are forward and backward passes of what is trained, forward passes of teachers and evaluations; not what methods add,
    nor the reading of images.

    Raises:
        KdbenchError: if the number of training images is not known without the data.
    """
    jobs: dict[str, Range] = {}
    needs: dict[str, str] = {}
    trained = 0
    teachers = list({each.hash: each for cohort in cohorts for each in cohort.teacher.chain}.values())
    for teacher in teachers:
        if teacher.trained_here and not teacher.net.ensemble and store.result_of_teacher(teacher) is None:
            jobs[f"teacher {teacher.name}"] = _teacher(plan, teacher, profile)
    for cohort in cohorts:
        jobs[cohort.name] = _cohort(plan, cohort, profile)
        if (teaches := f"teacher {cohort.teacher.name}") in jobs:
            needs[cohort.name] = teaches
        trained = max(trained, _held(plan, cohort))
    recipes = [cohort.cells[0].recipe for cohort in cohorts]
    return Foretold(
        profile,
        workers,
        jobs,
        Range(
            *(
                wall_time(
                    [JobEstimate(name, getattr(job, end), "counted", needs.get(name)) for name, job in jobs.items()],
                    workers,
                )
                for end in ("low", "high")
            )
        ),
        sum(jobs.values(), Range(0.0, 0.0)),
        disk_bytes(plan, cohorts),
        trained,
        {recipe.precision: assumed_share(plan, recipe) for recipe in recipes},
    )


def assumed_share(plan: Plan, recipe: Recipe) -> tuple[float, float]:
    """The least and the largest share of its peak that a GPU is assumed to reach."""
    side = plan.suite.dataset.image_size or 0  # small sets have a size of their own
    return (_LARGE if side >= _SIDE else _SMALL)[recipe.precision]


def _teacher(plan: Plan, teacher: TeacherPlan, profile: Profile) -> Range:
    images = training_images(plan, teacher.split, plan.under.teacher_images_per_class)
    recipe = teacher.recipe
    passes = TRAINING * recipe.epochs * _per_epoch(images, recipe.batch_size) + recipe.evaluations * measured_images(
        plan
    )
    return _seconds(passes * _operations(plan, teacher.net, teacher.name), plan, recipe, profile)


def _cohort(plan: Plan, cohort: Cohort, profile: Profile) -> Range:
    recipe = cohort.cells[0].recipe
    images = training_images(plan, cohort.cells[0].split, plan.under.images_per_class)
    seen = recipe.epochs * _per_epoch(images, recipe.batch_size)
    views = 1
    total = 0.0
    for cell in cohort.cells:
        own = 2 if "strong" in plan.catalog[cell.method].needs else 1  # a second view is a second pass
        views = max(views, own)
        passes = TRAINING * own * seen + recipe.evaluations * measured_images(plan)
        total += passes * _operations(plan, cell.student_net, cell.student)
    if any(plan.catalog[cell.method].uses_teacher for cell in cohort.cells):
        total += views * seen * _operations(plan, cohort.teacher.net, cohort.teacher.name)
    return _seconds(total, plan, recipe, profile)


def _per_epoch(images: int, batch_size: int) -> int:
    return images // batch_size * batch_size


def _operations(plan: Plan, net: NetSpec, name: str) -> float:
    """Of a forward pass of one image."""
    from kdbench.nets.tapped import macs_of

    return float(OPERATIONS * macs_of(net, plan.num_classes, name))


def _seconds(operations: float, plan: Plan, recipe: Recipe, profile: Profile) -> Range:
    low, high = assumed_share(plan, recipe)
    peak = 1e12 * profile.tera[recipe.precision]
    return Range(operations / (high * peak), operations / (low * peak))


def _held(plan: Plan, cohort: Cohort) -> int:
    """Bytes of the teacher's weights, and of the students' with their gradients and optimiser states."""
    from kdbench.nets.tapped import count_parameters

    classes, teacher = plan.num_classes, cohort.teacher
    students = sum(count_parameters(cell.student_net, classes, cell.student) for cell in cohort.cells)
    return TRAINED_BYTES * students + 4 * count_parameters(teacher.net, classes, teacher.name)
