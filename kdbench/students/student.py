"""An exported student: what its folder says, and the module that predicts as the trained cell did."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from PIL.Image import Image
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from kdbench.data.transforms import EvaluationView, evaluation_transform
from kdbench.errors import KdbenchError
from kdbench.method import Method, NetInfo, Task
from kdbench.nets.tapped import TappedNet
from kdbench.opening import read_file
from kdbench.plugins.registry import catalog
from kdbench.shown import TEXT_LENGTH, printable
from kdbench.store.files import read_json
from kdbench.store.reading import MAX_CLASSES
from kdbench.store.result import Provenance, Record, Scores, TeacherUsed, Text
from kdbench.suite.net import NetSpec, name_files
from kdbench.suite.types import Colours
from kdbench.userfiles import source_hash

#: Names of the files of an export.
CONFIG, WEIGHTS, INFERENCE, ONNX = "config.json", "student.safetensors", "inference.safetensors", "student.onnx"

Side = Annotated[int, Field(ge=1, le=100_000)]
#: What a method is built for: more images than any data set has.
Images = Annotated[int, Field(ge=0, le=100_000_000)]


class TaskDescription(Record):
    """``kdbench.method.Task`` without its labels."""

    num_classes: int
    num_train: Images
    dataset: str = ""
    epochs: int = 1


class Inference(Record):
    """What a method with its own ``predict`` is built from; its parameters lie beside it."""

    teacher: NetInfo
    task: TaskDescription


class MethodUsed(Record):
    """The method that trained the student; ``source`` is the hash of a plugin's file, ``display`` the name of its row."""

    name: str
    version: int
    source: str | None
    hyperparameters: dict[str, Any]
    display: Text


class CellUsed(Record):
    """Which cell it was."""

    suite: Text
    protocol: Text
    split: Text
    pair: Text
    seed: int | None
    hash: str


class StudentConfig(Record):
    """``config.json`` of an export.

    Attributes:
        net: its identity in the cell, see ``net_of``.
        mean, std, input_size: what the student itself does with images; ``input_size`` is (height, width) in pixels.
        view: what images are cut to before that.
        precision: of the forward pass, ``cpu_threads``: of the process, with which the predictions of the cell were made.
        inference: of a method with its own ``predict``.
        metrics: of the last epoch.
        files: SHA-256 of each.
    """

    version: Literal[1] = 1
    kind: Literal["student"] = "student"
    student: Text
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    class_names: tuple[Text, ...] | None
    mean: Colours
    std: Colours
    input_size: tuple[Side, Side]
    view: EvaluationView
    net: dict[str, Any]
    precision: Literal["float32", "bfloat16", "float16"]
    cpu_threads: int
    method: MethodUsed
    inference: Inference | None
    cell: CellUsed
    metrics: Scores
    teacher: TeacherUsed
    dataset: dict[str, Any]
    dataset_checksum: str
    provenance: Provenance
    files: dict[str, str]


class Student(nn.Module):
    """A trained student, ready to predict: in eval mode, on the CPU.

    Attributes:
        config: what ``config.json`` holds.
        mean, std, input_size, class_names: of it; ``class_names`` is None for classes without names.
    """

    def __init__(self, config: StudentConfig, net: TappedNet, head: Method | None) -> None:
        super().__init__()
        self.config: dict[str, Any] = config.model_dump(mode="json")
        self.mean, self.std, self.input_size = config.mean, config.std, config.input_size
        self.class_names = config.class_names
        self.net = net
        self.head = head
        self.view = config.view
        self.dtype: torch.dtype = getattr(torch, config.precision)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of RGB images (B, 3, h, w) in [0, 1], which are resized to ``input_size`` and normalised here."""
        if self.dtype is torch.float32:
            return self._predict(images)
        with torch.autocast(images.device.type, self.dtype):
            return self._predict(images).float()

    def transform(self, picture: Image) -> Tensor:
        """A picture as the student was measured on pictures: (3, h, w) in [0, 1], resized and cut where its data set's were."""
        picture = picture.convert("RGB")
        pixels = pil_to_tensor(picture) if self.view.size is None else evaluation_transform(self.view)(picture)
        return torch.as_tensor(pixels).float() / 255

    def _predict(self, images: Tensor) -> Tensor:
        if self.head is None:
            return self.net(images).logits
        return self.head.predict(self.net(images, self.head.predict_needs))


def load_student(path: Path | str, plugins: Sequence[str] = ()) -> Student:
    """Load what ``kdbench export`` wrote.

    On the same kind of processor, with the cell's number of threads (``config["cpu_threads"]``) and batches of 250 images its
    logits are those of the cell, bit for bit. Nothing in the folder can run code.

    Args:
        path: the folder.
        plugins: files of methods that are not kdbench's own, where the student needs one to predict.

    Raises:
        KdbenchError: for a folder that holds something else, is damaged, or needs a method that is not known here.
    """
    folder = Path(path)
    try:
        config = StudentConfig.model_validate(read_json(folder / CONFIG))
        files = {name: read_file(folder / name, None) for name in (WEIGHTS, INFERENCE) if name in config.files}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise KdbenchError(f"{folder} is no exported student: it has no {Path(error.filename).name}") from None
    except ValidationError as error:
        raise KdbenchError(f"{folder / CONFIG} is not that of a student ({first_problem(error)})") from None
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != config.files[name]:
            raise KdbenchError(f"{folder / name} is damaged (its checksum does not match)")
    return build_student(config, files, folder, plugins)


def build_student(
    config: StudentConfig, files: Mapping[str, bytes], where: Path, plugins: Sequence[str] = ()
) -> Student:
    """A student with its weights.

    Args:
        files: content by name.
        where: they come from, for messages.

    Raises:
        KdbenchError: if they do not fit the net, or the method is not known or another one.
    """
    net = net_of(config.net, plugins)
    method = None if config.inference is None else _method(config.method, plugins)
    try:
        states = {name: safetensors.torch.load(content) for name, content in files.items()}
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"):  # what does not fit takes no memory
                _fill(_build(config, net, method), states)
            student = _build(config, net, method)
        _fill(student, states)
    except KdbenchError:
        raise
    except Exception as error:  # nets and methods differ in how they refuse
        reason = printable(" ".join(str(error).split()), TEXT_LENGTH) or type(error).__name__
        raise KdbenchError(f"{where}: the weights do not fit the net ({reason})") from None
    return student


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False)[0]
    return printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", TEXT_LENGTH)


def net_of(identity: Mapping[str, Any], plugins: Sequence[str] = ()) -> NetSpec:
    """A net by its identity (``NetSpec.identity``); one that is made by a file of Python only if that is among ``plugins``.

    Raises:
        KdbenchError: if it is not, or the identity is not enough to build the net.
    """
    own = dict(identity)
    if isinstance(own.get("hf"), Mapping):
        raise KdbenchError("the net comes from a folder of transformers, of which a cell keeps a checksum alone")
    if own.get("python"):
        name, _, function = str(own["python"]).rpartition(":")
        source = own.pop("source", None)
        file = next(
            (Path(p).resolve() for p in plugins if Path(p).name == name and source_hash(Path(p)) == source), None
        )
        if file is None:
            raise KdbenchError(
                f"the net is made by {printable(name)} (source {printable(source)}), which runs only if you name that file: "
                "plugins=[FILE], or --plugin FILE"
            )
        name_files([str(file)])
        own["python"] = f"{file}:{function}"
    try:
        return NetSpec.model_validate(own)
    except ValidationError as error:
        raise KdbenchError(f"the net cannot be built: {first_problem(error)}") from None


def _build(config: StudentConfig, spec: NetSpec, method: type[Method] | None) -> Student:
    net = TappedNet(spec, config.num_classes, config.student)
    if method is None or config.inference is None:
        return Student(config, net, None)
    task = config.inference.task
    known = Task(**task.model_dump(), train_labels=torch.zeros(task.num_train, dtype=torch.int64))
    head = method(net.describe(), config.inference.teacher, known, **config.method.hyperparameters)
    return Student(config, net, head)


def _fill(student: Student, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load weights; on the device "meta" compare shapes only."""
    for name, module in ((WEIGHTS, student.net.net), (INFERENCE, student.head)):
        if module is None:
            continue
        wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in states.get(name, {}).items()}
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise ValueError(f"{name}: {key} is {found.get(key, 'missing')}, expected {wanted.get(key, 'none')}")
        if not any(value.is_meta for value in module.state_dict().values()):
            module.load_state_dict(dict(states.get(name, {})))


def _method(used: MethodUsed, plugins: Sequence[str]) -> type[Method]:
    """The class whose ``predict`` the student needs."""
    known = catalog(plugins, [Path(plugin).resolve() for plugin in plugins])
    if used.name not in known:
        raise KdbenchError(
            f"the student predicts with method {printable(used.name)}, which is not known here; name its file: "
            "load_student(path, plugins=[FILE])"
        )
    entry = known[used.name]
    source = None if entry.builtin else entry.source_hash()
    if (entry.version, source) != (used.version, used.source):
        theirs, ours = (f"version {version}{f' ({text})' if text else ''}" for version, text in
                        ((used.version, used.source), (entry.version, source)))  # fmt: skip
        raise KdbenchError(
            f"the student predicts with method {used.name}, {printable(theirs)}, and here is its {ours}; "
            "load it with the kdbench and the plugin that trained it"
        )
    found: Any = entry.load()
    return found
