"""``kdbench new-method``: the text of a new method's file. Works without torch."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Collection
from pathlib import Path

from kdbench.errors import KdbenchError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: Names that the template imports, which the class must not hide.
_IMPORTED = frozenset({"Annotated", "Batch", "F", "Method", "NetInfo", "Outputs", "Range", "Task", "Tensor"})

_TEMPLATE = '''\
"""{display}: say in one line what is distilled.

Check:  kdbench test {name} --plugin THIS_FILE
Train:  kdbench run digits --protocol smoke --methods scratch,kd,{name} --plugin THIS_FILE
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method


def {name}_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Softened KL divergence between the predictions of both nets, times T^2. Logits (B, C); mean over the batch."""
    # log_softmax, not log(softmax): the latter is infinite for sure predictions. Half precision is left first.
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@register_method("{name}")
class {class_name}(Method):
    """Authors, Title, Venue Year (arXiv id): tables and listings print this first paragraph.

    Then, in your own words: what deviates from the paper and what one has to look out for.
    """

    display = "{display}"  # what tables print
    family = "logits"  # or "hint" (features), "relation" (between samples), "hybrid"
    fidelity = "paper"  # "reference" if it equals official code, "reconstruction" if the paper leaves much open
    # What is tapped. Also possible: "stages" (four feature maps), "embedding" (the vector before the classifier),
    # "index" (position in the training set), "classifier", "stagewise", "strong" (a second, strongly augmented view),
    # "attention" (of ViTs).
    needs = frozenset({{"logits"}})
    version = 1  # raise it with every change that changes results

    # Keyword-only arguments with literal defaults are the hyper-parameters: --set {name}.temperature=2. What lies outside
    # the range is refused; "search" is the interval that a search draws from.
    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 4.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        # Projectors, banks and the like are created here as modules and buffers; they train with the student.

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        # Named, weighted, scalar terms: their sum is minimised, each is logged. Change nothing in place.
        return {{
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * {name}_loss(student.logits, teacher.logits, self.temperature),
        }}
'''


def check_name(name: str, taken: Collection[str]) -> None:
    """Refuse a name that cannot be that of a new method.

    Raises:
        KdbenchError: with the reason, in one line.
    """
    if not _NAME.fullmatch(name):
        raise KdbenchError(
            f"method name {name!r}: must be lower-case letters, digits and _, beginning with a letter, at most 40"
        )
    if keyword.iskeyword(name):
        raise KdbenchError(f"method name {name!r} is a word of Python; choose another")
    if name in taken:
        raise KdbenchError(f"method name {name!r} is taken; choose another")


def method_template(name: str) -> str:
    """The text of a file that registers a working method ``name``."""
    words = [word for word in name.split("_") if word]
    class_name = "".join(word[0].upper() + word[1:] for word in words)
    if class_name in _IMPORTED or keyword.iskeyword(class_name):
        class_name += "Distillation"
    return _TEMPLATE.format(name=name, class_name=class_name, display=" ".join(words).upper())


def write_template(name: str, path: Path) -> None:
    """Write ``method_template`` to a file that does not exist yet.

    Raises:
        KdbenchError: if it exists, does not end in .py, or cannot be written.
    """
    if path.suffix != ".py":
        raise KdbenchError(f"{path}: a method's file must end in .py")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(method_template(name))
    except FileExistsError:
        raise KdbenchError(f"{path} exists already; nothing was written (choose another file with --to)") from None
    except OSError as error:
        raise KdbenchError(f"{path} cannot be written ({error.strerror})") from None


def next_steps(name: str, path: Path) -> str:
    """What to do after ``write_template``."""
    file = shlex.quote(str(path))
    return (
        f"wrote {path}: a working method, logit distillation, to change into yours\n"
        f"  check it:   kdbench test {name} --plugin {file}\n"
        f"  train it:   kdbench run digits --protocol smoke --methods scratch,kd,{name} --plugin {file}\n"
        "  read:       docs/adding-a-method.md"
    )
