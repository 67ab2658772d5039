"""An exported student as an ONNX graph, compared with torch before it is written."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.shown import TEXT_LENGTH, printable
from kdbench.students.student import ONNX, Student

#: Largest difference of a logit from torch's.
TOLERANCE = 1e-4
_NEEDED = ("onnx", "onnxscript")


def to_onnx(student: Student) -> bytes:
    """The student as a graph ``images`` (B, 3, h, w) in [0, 1], of its input size, to ``logits`` (B, C), in 32-bit floats.

    Raises:
        KdbenchError: if torch cannot export it, or a logit of the graph is further from torch's than ``TOLERANCE``.
    """
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise KdbenchError("--onnx needs the packages onnx and onnxscript: pip install 'kdbench[onnx]'")
    student.dtype = torch.float32
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, *student.input_size, generator=generator)
    try:
        with torch.no_grad(), _quiet(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, ONNX)
            torch.onnx.export(
                student, (images[:2],), path, dynamo=True, external_data=False, verbose=False,
                input_names=["images"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
            content = path.read_bytes()
            wanted, found = student(images), _run(content, images)
    except Exception as error:  # of torch's exporter, the graph's reader, or either's operators
        reason = printable(" ".join(str(error).split()), TEXT_LENGTH)
        raise KdbenchError(f"the student cannot be written as ONNX ({type(error).__name__}: {reason})") from None
    furthest = float((wanted - found).abs().max()) if wanted.shape == found.shape else float("inf")
    if not furthest <= TOLERANCE:
        raise KdbenchError(f"the ONNX graph's logits differ by {furthest:.2g} from torch's, more than {TOLERANCE:g}")
    return content


def _run(content: bytes, images: Tensor) -> Tensor:
    """Logits (B, C) by ONNX Runtime, or by ONNX's own evaluator where that is not installed."""
    session: Any
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    else:
        import onnx.reference

        session = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content))
    (logits,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(logits)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what torch's exporter says of its progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
