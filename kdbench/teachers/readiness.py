"""Whether the teachers of a run are ready: weights present, intact, and as accurate as published.

Imports torch only where weights are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from kdbench.datasets.download import file_digest
from kdbench.errors import KdbenchError, ListedError
from kdbench.matrix.cells import Plan
from kdbench.matrix.request import Request
from kdbench.matrix.teachers import TeacherPlan
from kdbench.opening import inside
from kdbench.store.files import DamagedFileError, write_json
from kdbench.store.folders import Store
from kdbench.store.result import TeacherResult
from kdbench.suite.net import WeightsFile
from kdbench.teachers.verification import TOLERANCE, Verdict, chance_complaint, complaint, judge
from kdbench.teachers.weights import Weights, check_file, fetch_weights, find_weights, missing_weights

#: The protocol whose few images tell little: it only notes that a teacher guesses.
SMOKE = "smoke"
#: Takes a sentence for the user.
Note = Callable[[str], None]
#: Takes the bytes downloaded so far, and all.
Progress = Callable[[int, int], None]


def check_weights(
    teachers: Sequence[TeacherPlan], store: Store, request: Request, note: Note, progress: Progress | None
) -> None:
    """Check that teachers that are not prepared yet have their weights, and the ones that the suite names.

    Args:
        progress: fetch what is missing, with progress reported here; None fetches nothing.

    Raises:
        ListedError: naming all that are missing, or all that are others.
    """
    folder = request.weights_folder
    wanted: dict[str, Weights] = {}
    for teacher in teachers:
        if teacher.net.weights == "train":
            continue
        result = store.result_of_teacher(teacher)
        if result is None:
            wanted[teacher.name] = find_weights(teacher.name, teacher.net, folder)
        elif not teacher.trained_here:
            _note_change(teacher, result, store, folder, note)
    if progress is not None:
        wanted = {name: fetch_weights(weights, folder, progress) for name, weights in wanted.items()}
    missing = [weights for weights in wanted.values() if weights.path is None]
    if missing:
        raise missing_weights(missing, request.suite, folder)
    problems = []
    for weights in wanted.values():
        try:
            check_file(weights)
        except KdbenchError as error:
            problems.append(str(error))
    raise_all(problems, "the weights of {} teachers are not the ones that the suite means")


def _note_change(teacher: TeacherPlan, result: TeacherResult, store: Store, folder: Path | None, note: Note) -> None:
    """Note that a file that is identified by its name alone has changed since its weights were loaded."""
    weights = teacher.net.weights
    if not isinstance(weights, WeightsFile) or weights.sha256 or folder is None:
        return
    with contextlib.suppress(OSError):
        if result.weights and file_digest(inside(folder, weights.file), "sha256") != result.weights.file_sha256:
            note(
                f"{folder / weights.file} has changed since teacher {teacher.name} was loaded from it; {store.root / teacher.folder} "
                "keeps the former weights, which are still used. Write the file's sha256 into the suite to use the new ones"
            )


def drop_damaged(teachers: Sequence[TeacherPlan], store: Store, note: Note) -> None:
    """Remove results of teachers whose weights are damaged, so that they are trained or loaded again."""
    for teacher in teachers:
        result = store.result_of_teacher(teacher)
        folder = store.teacher_folder(teacher)
        if result is None:
            continue
        try:
            folder.check_weights(result.checksum)
        except (DamagedFileError, OSError):
            verb = "trained" if teacher.trained_here else "loaded"
            note(f"{folder.weights} is damaged: teacher {teacher.name} is {verb} again")
            folder.result.unlink()


def verdict_of(teacher: TeacherPlan, store: Store, tolerance: float = TOLERANCE) -> Verdict | None:
    """The measured accuracy of a teacher with weights against the published one; None where nothing was measured."""
    result = None if teacher.trained_here else store.result_of_teacher(teacher)
    return None if result is None else judge(teacher, result, tolerance)


def check_accuracies(plan: Plan, teachers: Sequence[TeacherPlan], store: Store, note: Note) -> None:
    """Compare teachers that came with weights with their published accuracy, and keep that in ``verification.json``.

    Raises:
        KdbenchError: for teachers that deviate by more than the request's tolerance, or, but under a protocol ``smoke``, are not
            above guessing.
    """
    problems = []
    tolerance = plan.request.teacher_tolerance
    for teacher in teachers:
        verdict = verdict_of(teacher, store, tolerance)
        usual = verdict_of(teacher, store)
        if verdict is None or usual is None:
            continue
        passes = verdict.agrees and not verdict.guesses
        accepted = passes and (usual.guesses or not usual.agrees)
        write_json(
            store.teacher_folder(teacher).verification,
            {
                **{"top1": verdict.top1, "images": verdict.images, "published": verdict.published},
                **{"source": verdict.source, "why": verdict.why, "tolerance": tolerance},
                "expected": [verdict.low, verdict.high],
                "guessing": verdict.floor,
                "agrees": passes,
                "accepted_only_by_tolerance": accepted,
            },
        )
        if verdict.guesses and plan.under.name != SMOKE:
            names = plan.dataset(teacher.split).class_names
            problems.append(chance_complaint(teacher.name, verdict, names))
        elif verdict.agrees:
            why = f"; this is accepted only by --teacher-tolerance {tolerance:g}" if accepted else ""
            note(f"teacher {teacher.name}: {verdict}{why}")
        else:
            problems.append(complaint(teacher.name, verdict))
    raise_all(problems, "{} teachers deviate from their published accuracy, or guess")


def raise_all(problems: Sequence[str], sentence: str) -> None:
    """Raise one problem as it stands, several as a list below ``sentence``, in which ``{}`` is their number."""
    if len(problems) == 1:
        raise KdbenchError(problems[0])
    if problems:
        raise ListedError(sentence.format(len(problems)), problems)


def state_of(teacher: TeacherPlan, store: Store) -> str:
    """The state of a teacher as a phrase, without searching for its weights."""
    result = store.result_of_teacher(teacher)
    if teacher.net.ensemble:
        return origin_of(teacher) + (f", top-1 {result.top1:.1f}" if result else ", to be joined")
    if teacher.trained_here:
        if result is not None:
            return f"trained, top-1 {result.top1:.1f}"
        return "to be trained" if teacher.net.weights == "train" else f"to be fine-tuned from timm {teacher.net.timm}"
    if result is None:
        return f"to be loaded from {origin_of(teacher)}"
    return f"loaded from {origin_of(teacher)}, {judge(teacher, result)}"


def origin_of(teacher: TeacherPlan) -> str:
    """Where a teacher's weights come from, as a phrase."""
    weights = teacher.net.weights
    if teacher.net.ensemble:
        return f"ensemble of {', '.join(teacher.net.ensemble)}"
    if isinstance(weights, WeightsFile):
        return f"file {weights.file}"
    taught = f", taught by {teacher.net.taught_by}" if teacher.net.taught_by else ""
    return {
        "train": "trained here",
        "finetune": f"fine-tuned here from timm {teacher.net.timm}",
        "timm": f"timm {teacher.net.timm}",
    }[weights] + taught
