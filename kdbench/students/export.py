"""From a finished cell to a folder that stands alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.data.views import view_of
from kdbench.errors import KdbenchError
from kdbench.matrix.identity import config_hash
from kdbench.nets.models import preprocessing_of
from kdbench.opening import read_file
from kdbench.shown import printable
from kdbench.store.classnames import read_classes
from kdbench.store.files import DamagedFileError, encode_json, read_json, write_bytes
from kdbench.store.folders import CellFolder
from kdbench.store.layout import Folder
from kdbench.store.result import CellResult
from kdbench.students.student import (
    CONFIG,
    INFERENCE,
    ONNX,
    WEIGHTS,
    StudentConfig,
    build_student,
    first_problem,
    net_of,
)
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.recipe import Recipe

_SEED = re.compile(r"seed(\d{1,10})-[0-9a-f]{10}")


def export_student(cell: Path, to: Path, onnx: bool = False, plugins: Sequence[str] = ()) -> dict[str, Path]:
    """Write what a finished cell's student needs to predict, and where it comes from; see ``StudentConfig``.

    The student is built from it first: what is written can be loaded.

    Args:
        cell: its folder.
        to: a folder that does not exist yet, or is empty.
        onnx: also as an ONNX graph.
        plugins: files of methods that are not kdbench's own.

    Returns:
        the files by name.

    Raises:
        KdbenchError: if the cell has no result, or not all that inference needs; if there is something at ``to``; see ``to_onnx``.
    """
    if os.path.lexists(to) and not (to.is_dir() and not any(to.iterdir())):
        raise KdbenchError(f"{to} exists and is not an empty folder; export writes into a new one")
    folder = CellFolder(cell)
    result = _result(folder)
    try:
        files = {WEIGHTS: read_file(folder.student, None)}
        if folder.inference_config.exists():
            files[INFERENCE] = read_file(folder.inference, None)
    except FileNotFoundError as error:
        raise KdbenchError(f"{cell}: {Path(error.filename).name} is missing; without it there is no student") from None
    config = _config(
        folder, result, plugins, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    )
    student = build_student(config, files, cell, plugins)
    if onnx:
        from kdbench.students.onnx import to_onnx

        files[ONNX] = to_onnx(student)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        config = config.model_copy(update={"files": sums})
    files[CONFIG] = encode_json(config.model_dump(mode="json"))
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdbenchError(f"{to} cannot be made ({error.strerror})") from None
    for name, content in files.items():
        write_bytes(to / name, content)
    return {name: to / name for name in files}


def _result(folder: CellFolder) -> CellResult:
    """The result of a cell that is done."""
    if not os.path.lexists(folder.config):
        raise KdbenchError(f"{folder.path} is not the folder of a cell: it has no {folder.config.name}")
    configuration = read_json(folder.config).get("config")
    if not isinstance(configuration, dict) or configuration.get("kind") != "cell":
        raise KdbenchError(f"{folder.path} is not the folder of a cell: {folder.config.name} is of something else")
    found = folder.look()
    if found.result is not None:
        return found.result
    if found.problem:
        raise KdbenchError(f"{found.problem}; kdbench run trains the cell again")
    said = {
        "failed": lambda: f"the cell failed: {folder.failure().reason}",
        "skipped": lambda: f"the cell was skipped: {read_json(folder.skipped).get('reason')}",
    }
    reason = said[found.state]() if found.state in said else f"the cell is {found.state}, not done"
    raise KdbenchError(printable(f"{folder.path}: {reason}; there is no student to export"))


def _config(folder: Folder, result: CellResult, plugins: Sequence[str], files: dict[str, str]) -> StudentConfig:
    """What is written of a cell, from its configuration and its result.

    Raises:
        KdbenchError: if these do not belong together, or the cell has not kept what inference needs.
    """
    inference: dict[str, Any] | None = None
    if INFERENCE in files:
        inference = read_json(folder.inference_config)
    elif result.cost.inference_extra_parameters:
        raise KdbenchError(
            f"{folder.path}: its method predicts with {result.cost.inference_extra_parameters:,} parameters of its own, which this "
            "cell has not kept (an older kdbench trained it); remove its folder and train it again"
        )
    stored = read_json(folder.config)
    try:
        own, facts = stored["config"], stored["facts"]
        if not (config_hash(own) == stored["hash"] == result.hash):
            raise DamagedFileError(folder.config, "it is not that of the result")
        net = net_of(own["student"]["net"], plugins)
        recipe = Recipe.model_validate({key: value for key, value in own["recipe"].items() if key != "name"})
        named = ("name", "image_size", "classes", "labels", "folder", "num_classes")
        dataset = DatasetSpec.model_validate({key: own["dataset"][key] for key in named})
        names = None
        if len(parents := folder.path.absolute().parents) > 4:
            names = read_classes(parents[4], dataset.name)
        seed = _SEED.fullmatch(folder.path.name)
        seen = preprocessing_of(net)
        return StudentConfig.model_validate(
            {
                "student": own["student"]["name"],
                "num_classes": dataset.width,
                "class_names": names.class_names if names and len(names.class_names) == dataset.width else None,
                **{key: seen[key] for key in ("mean", "std", "input_size")},
                "view": view_of(dataset.image_size, net, recipe),
                "net": own["student"]["net"],
                "precision": recipe.precision,
                "cpu_threads": own["cpu_threads"],
                "method": {**own["method"], "display": facts["method_display"]},
                "inference": inference,
                "cell": {
                    "suite": own["suite"],
                    "protocol": own["protocol"]["name"],
                    "split": own["split"],
                    "pair": f"{own['teacher']['name']}--{own['student']['name']}",
                    "seed": int(seed[1]) if seed else None,
                    "hash": result.hash,
                },
                "metrics": result.metrics.last,
                "teacher": result.teacher,
                "dataset": own["dataset"],
                "dataset_checksum": result.dataset_checksum,
                "provenance": result.provenance,
                "files": files,
            }
        )
    except ValidationError as error:
        raise DamagedFileError(folder.config, first_problem(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(folder.config, f"{type(error).__name__}: {error}") from None
