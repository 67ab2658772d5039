"""Whether the teachers of a run are ready: their weights are there, sound, and reach what was published of them.

Imports torch only where weights are looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, ListedError
from kdbench.matrix.cells import Cell
from kdbench.matrix.teachers import TeacherPlan
from kdbench.store.folders import CellFolder, Store, write_json
from kdbench.suite.net import WeightsFile
from kdbench.teachers.verification import TOLERANCE, Verdict, complaint, judge
from kdbench.teachers.weights import Weights, check_file, fetch_weights, file_sha256, find_weights, missing_weights

Say = Callable[[str], None]


def teachers_of(cells: Sequence[Cell]) -> list[TeacherPlan]:
    """The teachers of cells, each once."""
    return list({cell.teacher.hash: cell.teacher for cell in cells}.values())


def check_weights(
    teachers: Sequence[TeacherPlan],
    store: Store,
    folder: Path | None,
    suite: str,
    fetch: Callable[[int, int], None] | None = None,
    say: Say = lambda text: None,
) -> None:
    """See that the weights of teachers that are not prepared yet are there and are the ones that the suite means.

    Args:
        folder: of the weights.
        suite: as the user writes it, for messages.
        fetch: fetches what is missing and is told of the progress; None fetches nothing.
        say: takes notes.

    Raises:
        ListedError: naming all that are missing, or all that are others.
    """
    wanted: dict[str, Weights] = {}
    for teacher in teachers:
        if teacher.net.weights == "train":
            continue
        result = store.result_of_teacher(teacher)
        if result is None:
            wanted[teacher.name] = find_weights(teacher.name, teacher.net, folder)
        elif not teacher.trained_here:
            _note_change(teacher, result, store, folder, say)
    if fetch is not None:
        wanted = {name: fetch_weights(weights, folder, fetch) for name, weights in wanted.items()}
    missing = [weights for weights in wanted.values() if weights.path is None]
    if missing:
        raise missing_weights(missing, suite, folder)
    problems = []
    for weights in wanted.values():
        try:
            check_file(weights)
        except KdbenchError as error:
            problems.append(str(error))
    raise_all(problems, "the weights of {} teachers are not the ones that the suite means")


def _note_change(teacher: TeacherPlan, result: dict[str, Any], store: Store, folder: Path | None, say: Say) -> None:
    """Where only the name of a file tells weights apart, say that it holds others now than those that are in use."""
    weights = teacher.net.weights
    if not isinstance(weights, WeightsFile) or weights.sha256 or folder is None:
        return
    with contextlib.suppress(OSError):
        if file_sha256(folder / weights.file) != result["weights"]["file_sha256"]:
            say(
                f"{folder / weights.file} has changed since teacher {teacher.name} was loaded from it; {store.teacher(teacher)} "
                "keeps the former weights, which go on being used. Write the file's sha256 into the suite to use the new ones"
            )


def drop_damaged(teachers: Sequence[TeacherPlan], store: Store, say: Say) -> None:
    """Forget results of teachers whose weights are damaged, so that they are made anew."""
    from kdbench.engine.teacher import weights_are_sound

    for teacher in teachers:
        result = store.result_of_teacher(teacher)
        folder = store.teacher(teacher)
        if result is not None and not weights_are_sound(folder / "weights.safetensors", result["checksum"]):
            again = "trained" if teacher.trained_here else "loaded"
            say(f"{folder / 'weights.safetensors'} is damaged: teacher {teacher.name} is {again} again")
            CellFolder(folder).result.unlink()


def verdict_of(teacher: TeacherPlan, store: Store, tolerance: float = TOLERANCE) -> Verdict | None:
    """What was measured of a teacher that came with weights, beside what was published; None where there is nothing to judge."""
    result = None if teacher.trained_here else store.result_of_teacher(teacher)
    return None if result is None else judge(teacher, result, tolerance)


def check_accuracies(teachers: Sequence[TeacherPlan], store: Store, tolerance: float, say: Say) -> None:
    """Say what teachers that came with weights reach beside what was published, and keep it in ``verification.json``.

    Raises:
        KdbenchError: for teachers that are far off.
    """
    problems = []
    for teacher in teachers:
        verdict = verdict_of(teacher, store, tolerance)
        usual = verdict_of(teacher, store)
        if verdict is None or usual is None:
            continue
        accepted = verdict.agrees and not usual.agrees
        write_json(
            store.teacher(teacher) / "verification.json",
            {
                **{"top1": verdict.top1, "images": verdict.images, "published": verdict.published},
                **{"source": verdict.source, "why": verdict.why, "tolerance": tolerance},
                "expected": [verdict.low, verdict.high],
                "agrees": verdict.agrees,
                "accepted_only_by_tolerance": accepted,
            },
        )
        if verdict.agrees:
            note = f"; this is accepted only by --teacher-tolerance {tolerance:g}" if accepted else ""
            say(f"teacher {teacher.name}: {verdict}{note}")
        else:
            problems.append(complaint(teacher.name, verdict))
    raise_all(problems, "{} teachers are far from their published accuracy")


def raise_all(problems: Sequence[str], sentence: str) -> None:
    """Raise one problem as it stands, several as a list below ``sentence``, in which ``{}`` is their number."""
    if len(problems) == 1:
        raise KdbenchError(problems[0])
    if problems:
        raise ListedError(sentence.format(len(problems)), problems)


def state_of(teacher: TeacherPlan, store: Store) -> str:
    """The state of a teacher in a few words, without looking for its weights."""
    result = store.result_of_teacher(teacher)
    if teacher.trained_here:
        if result is not None:
            return f"trained, top-1 {result['metrics']['last']['top1']:.1f}"
        return "to be trained" if teacher.net.weights == "train" else f"to be fine-tuned from timm {teacher.net.timm}"
    if result is None:
        return f"to be loaded from {origin_of(teacher)}"
    return f"loaded from {origin_of(teacher)}, {judge(teacher, result)}"


def origin_of(teacher: TeacherPlan) -> str:
    """Where a teacher's weights come from, in a few words."""
    weights = teacher.net.weights
    if isinstance(weights, WeightsFile):
        return f"file {weights.file}"
    return {
        "train": "trained here",
        "finetune": f"fine-tuned here from timm {teacher.net.timm}",
        "timm": f"timm {teacher.net.timm}",
    }[weights]
