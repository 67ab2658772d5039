"""Students taken away: what is exported predicts as the cell did, and what cannot be exported is refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from kdbench import load_student
from kdbench.data.transforms import EvaluationView
from kdbench.datasets.load import load_dataset
from kdbench.errors import KdbenchError
from kdbench.plugins.entry import METHODS
from kdbench.store.classnames import write_classes
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.folders import CellFolder
from kdbench.store.layout import find_cell
from kdbench.students.export import export_student
from kdbench.students.student import net_of
from kdbench.suite.net import NetSpec
from tests.conftest import Said
from tests.engine.conftest import ONE_EPOCH, Lab
from tests.hostile import change

Kdbench = Callable[..., Said]
pytestmark = pytest.mark.xdist_group("export")  # one process trains the cells

#: A method that predicts with a parameter of its own.
SCALED = """
import torch
from kdbench import Method, register_method


@register_method("scaled")
class Scaled(Method):
    \"\"\"A plugin of the tests.\"\"\"

    def __init__(self, student, teacher, task):
        super().__init__(student, teacher, task)
        self.scale = torch.nn.Parameter(torch.ones(student.num_classes))

    def forward(self, batch, student, teacher):
        return {"ce": batch.task_loss(self.predict(student))}

    def predict(self, student):
        return student.logits * self.scale
"""

#: Loads exports in a process of their own, and answers what each predicts of the digits that were measured.
FRESH = """
import json, sys
import torch, kdbench
from kdbench.datasets.load import load_dataset

torch.set_num_threads(1)
images = load_dataset("digits").measured("test", 10).images.float() / 255
found = {}
for path in sys.argv[1:]:
    student = kdbench.load_student(path)
    assert not student.training
    with torch.no_grad():
        logits = torch.cat([student(batch) for batch in images.split(250)])
    probability, predicted = logits.double().softmax(dim=1).max(dim=1)
    found[path] = [predicted.tolist(), probability.float().tolist()]
assert "mmengine" not in sys.modules
print(json.dumps(found))
"""


class Trained:
    """Finished cells, by the name of their method, and of a recipe of 16-bit floats."""

    def __init__(self, root: Path) -> None:
        lab = Lab(root)
        self.out = root / "runs"
        self.plugin = root / "scaled.py"
        self.plugin.write_text(SCALED)
        # averaged weights and a memory format: what is measured is neither the last step's nor laid out as it is stored
        plan = lab.plan(["kd", "simkd", "scaled"], "vit--cnn", [str(self.plugin)], recipe={**ONE_EPOCH, "ema": 0.5})
        half = lab.plan(["kd"], "vit--cnn", recipe={**ONE_EPOCH, "precision": "bfloat16"})
        store = lab.train(plan)
        lab.train(half)
        self.cells = {cell.method: store.cell(cell).path for cell in plan.cells}
        self.cells["half"] = store.cell(half.cells[0]).path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield Trained(tmp_path_factory.mktemp("trained"))
    METHODS.pop("scaled", None)


@pytest.fixture
def cell(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a finished cell of KD, in a run directory of its own."""
    path = tmp_path / "received" / trained.cells["kd"].relative_to(trained.out)
    shutil.copytree(trained.cells["kd"], path)
    return path


@pytest.fixture
def exported(trained: Trained, tmp_path: Path) -> Path:
    export_student(trained.cells["simkd"], tmp_path / "simkd")
    return tmp_path / "simkd"


def refused(kdbench: Kdbench, cell: Path | str, to: Path, *words: object) -> str:
    """What is said when a cell cannot be exported; nothing is written then."""
    said = kdbench("export", cell, "--to", to, *words)
    assert said.status == 2
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert not to.exists()
    return said.err


def test_an_exported_student_gives_the_stored_predictions_in_a_fresh_process(trained: Trained, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("kd", "simkd", "half")}
    for name, folder in folders.items():
        export_student(trained.cells[name], folder)
    (tmp_path / "empty").mkdir()
    answer = subprocess.run(
        [sys.executable, "-P", "-c", FRESH, *map(str, folders.values())],
        cwd=tmp_path / "empty", env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    for name, folder in folders.items():
        with np.load(trained.cells[name] / "predictions.npz") as stored:
            assert found[str(folder)][0] == stored["predicted"].tolist(), name
            assert np.float32(found[str(folder)][1]).tolist() == stored["probability"].tolist(), name


def test_export_needs_nothing_but_the_files_of_a_finished_cell(trained: Trained, tmp_path: Path) -> None:
    assert not [*trained.cells["simkd"].glob("*.ckpt")]
    alone = shutil.copytree(trained.cells["simkd"], tmp_path / "elsewhere")
    export_student(alone, tmp_path / "out")
    assert load_student(tmp_path / "out").head is not None


def test_only_methods_that_predict_on_their_own_keep_more_than_the_student(trained: Trained) -> None:
    kept = {name for name, path in trained.cells.items() if [*path.glob("inference.*")]}
    assert kept == {"simkd", "scaled"}


def test_a_plugins_student_loads_with_its_plugin_and_no_other_code(trained: Trained, tmp_path: Path) -> None:
    export_student(trained.cells["scaled"], tmp_path / "out", plugins=[str(trained.plugin)])
    student = load_student(tmp_path / "out", plugins=[str(trained.plugin)])
    images = load_dataset("digits").measured("test", 10).images.float() / 255  # type: ignore[attr-defined]
    with torch.no_grad(), np.load(trained.cells["scaled"] / "predictions.npz") as stored:
        assert student(images).argmax(1).tolist() == stored["predicted"].tolist()
    with pytest.raises(KdbenchError, match="method scaled, which is not known here; name its file"):
        load_student(tmp_path / "out")
    other = tmp_path / "scaled.py"
    other.write_text(SCALED.replace("* self.scale", "* self.scale * 2"))
    with pytest.raises(KdbenchError, match=r"version 1 .*here is its version 1"):
        load_student(tmp_path / "out", plugins=[str(other)])


def test_a_net_made_by_a_file_of_python_needs_that_very_file(tmp_path: Path) -> None:
    file = tmp_path / "my_net.py"
    file.write_text("def make(num_classes): ...")
    identity = NetSpec(python=f"{file}:make").identity()
    assert net_of(identity, [str(file)]).python == f"{file}:make"
    with pytest.raises(KdbenchError, match=r"the net is made by my_net\.py .*which runs only if you name that file"):
        net_of(identity)
    file.write_text("def make(num_classes): 1")
    with pytest.raises(KdbenchError, match="runs only if you name that file"):
        net_of(identity, [str(file)])
    with pytest.raises(KdbenchError, match="of which a cell keeps a checksum alone"):
        net_of({**identity, "python": "", "hf": {"config": "0" * 12}})


def test_timm_loads_the_weights_of_an_export(trained: Trained, tmp_path: Path) -> None:
    export_student(trained.cells["kd"], tmp_path / "out")
    student = load_student(tmp_path / "out")
    net = student.config["net"]
    plain = timm.create_model(
        net["timm"], num_classes=10, checkpoint_path=str(tmp_path / "out" / "student.safetensors"), **net["args"]
    ).eval()
    images = torch.rand(3, 3, *student.input_size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (student.mean, student.std))
    torch.testing.assert_close(plain((images - mean) / std), student(images))


def test_the_configuration_says_what_the_student_is_and_where_it_comes_from(cell: Path, tmp_path: Path) -> None:
    names = [f"digit {number}" for number in range(10)]
    write_classes(tmp_path / "received", "digits", names)
    export_student(cell, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    result = read_json(cell / "result.json")
    assert (config["num_classes"], config["class_names"], config["input_size"]) == (10, names, [32, 32])
    assert (config["mean"], config["std"]) == ([0.5] * 3, [0.25] * 3)
    assert config["net"]["timm"] == "resnet_32px_small"
    assert config["method"]["name"] == "kd"
    assert config["provenance"] == result["provenance"]
    assert config["teacher"] == result["teacher"]
    assert config["cell"]["hash"] == result["hash"]
    assert load_student(tmp_path / "out").class_names == tuple(names)


def test_every_file_of_json_is_json(trained: Trained, exported: Path) -> None:
    paths = [*trained.out.rglob("*.json"), *exported.rglob("*.json")]
    assert {path.name for path in paths} == {"format.json", "config.json", "result.json", "inference.json"}
    assert any('"agreement": null' in path.read_text() for path in paths)  # a teacher's with itself, which is no number
    for path in paths:
        json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))  # noqa: B023


def test_a_picture_is_shown_as_the_cell_was_measured_on_it(exported: Path) -> None:
    student = load_student(exported)
    picture = Image.fromarray(np.arange(40 * 60, dtype=np.uint32).reshape(40, 60).astype(np.uint8))
    whole = student.transform(picture)  # images of the suite have one size, which nothing changes
    assert whole.shape == (3, 40, 60)
    assert torch.equal(whole[0], torch.from_numpy(np.array(picture)).float() / 255)
    student.view = EvaluationView(size=32, crop=0.8)
    assert student.transform(picture).shape == (3, 32, 32)


def test_the_example_of_the_page_runs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    loading, by_timm = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    monkeypatch.chdir(tmp_path)
    export_student(trained.cells["kd"], Path("student"))
    Image.new("L", (32, 32), 200).save("picture.png")
    names: dict[str, Any] = {}
    exec(loading, names)  # noqa: S102
    assert capsys.readouterr().out.strip() in map(str, range(10))
    exec(by_timm, {"timm": timm, "config": names["student"].config})  # noqa: S102


def test_a_cell_is_named_by_the_end_of_its_path(kdbench: Kdbench, trained: Trained, tmp_path: Path) -> None:
    said = kdbench("export", "vit--cnn/simkd/seed0", "--out", trained.out, "--to", tmp_path / "a")
    assert said.status == 0, said.err
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json", "inference.safetensors", "student.safetensors",
    ]  # fmt: skip
    assert find_cell(trained.out, f"short/vit--cnn/simkd/{trained.cells['simkd'].name}") == trained.cells["simkd"]
    both = refused(kdbench, "vit--cnn/kd/seed0", tmp_path / "b", "--out", trained.out)
    assert "names 2 cells; choose one of tiny/short/vit--cnn/kd/seed0-" in both
    for name in ("seed0", "vit--cnn/kd/seed1", "vit--cnn/kd", "../kd/seed0", "/"):
        assert refused(kdbench, name, tmp_path / "b", "--out", trained.out)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "failed": (
        lambda cell: ((cell / "result.json").unlink(), CellFolder(cell).fail("exception", "it broke\n  at the end")),
        "the cell failed: it broke",
    ),
    "planned": (lambda cell: (cell / "result.json").unlink(), "the cell is planned, not done"),
    "skipped": (
        lambda cell: ((cell / "result.json").unlink(), (cell / "skipped.json").write_bytes(b"{}")),
        "damaged",
    ),
    "damaged": (lambda cell: (cell / "result.json").write_text("{"), "its checksum does not match"),
    "another's": (lambda cell: change(cell / "config.json", ("config", "cpu_threads"), 7), "not that of the result"),
    "odd": (lambda cell: change(cell / "config.json", ("config",), []), "is of something else"),
    "a teacher": (lambda cell: change(cell / "config.json", ("config", "kind"), "teacher"), "is of something else"),
    "a configuration without its end": (lambda cell: os.truncate(cell / "config.json", 100), "damaged"),
    "no weights": (lambda cell: (cell / "student.safetensors").unlink(), "student.safetensors is missing"),
    "a link": (
        lambda cell: ((cell / "student.safetensors").unlink(), (cell / "student.safetensors").symlink_to("/etc/hosts")),
        "is a link, which is not followed",
    ),
    "cut weights": (lambda cell: os.truncate(cell / "student.safetensors", 1000), "the weights do not fit the net"),
    "no cell": (lambda cell: [path.unlink() for path in cell.iterdir()], "is not the folder of a cell"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_cell_without_a_student_is_refused_and_nothing_is_written(
    kdbench: Kdbench, cell: Path, tmp_path: Path, kind: str
) -> None:
    damage, reason = DAMAGE[kind]
    damage(cell)
    assert reason in refused(kdbench, cell, tmp_path / "out")


def test_a_cell_that_has_not_kept_what_its_method_predicts_with_is_refused(
    kdbench: Kdbench, trained: Trained, tmp_path: Path
) -> None:
    older = shutil.copytree(trained.cells["simkd"], tmp_path / "older", ignore=shutil.ignore_patterns("inference.*"))
    said = refused(kdbench, older, tmp_path / "out")
    assert "parameters of its own, which this cell has not kept" in said


def test_nothing_is_written_over(kdbench: Kdbench, cell: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    to.mkdir()
    (to / "mine.txt").write_text("mine")
    for target in (to, to / "mine.txt", to / "mine.txt" / "below"):
        said = kdbench("export", cell, "--to", target)
        assert (said.status, len(said.err.splitlines())) == (2, 1)
        assert "is not an empty folder" in said.err or "cannot be made" in said.err
    assert [path.name for path in to.iterdir()] == ["mine.txt"]
    (to / "mine.txt").unlink()
    assert kdbench("export", cell, "--to", to).status == 0


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "weights of another": lambda folder: (folder / "student.safetensors").write_bytes(
        safetensors.torch.save({"x": torch.zeros(1)})
    ),
    "a pickle": lambda folder: torch.save({"x": torch.zeros(1)}, folder / "student.safetensors"),
    "a link": lambda folder: (
        (folder / "student.safetensors").rename(folder / "x"),
        (folder / "student.safetensors").symlink_to(folder / "x"),
    ),
    "no weights": lambda folder: (folder / "student.safetensors").unlink(),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "a cell's configuration": lambda folder: change(folder / "config.json", ("kind",), "cell"),
    "a file of timm's choice": lambda folder: change(
        folder / "config.json", ("net", "args", "checkpoint_path"), "/etc/hosts"
    ),
    "a net without end": lambda folder: change(folder / "config.json", ("net", "args", "channels", 3), 10**7),
    "no net": lambda folder: change(folder / "config.json", ("net", "timm"), "local-dir:/tmp"),
    "a method without end": lambda folder: change(
        folder / "config.json", ("inference", "teacher", "stages", 3, "channels"), 10**7
    ),
    "no method": lambda folder: change(folder / "config.json", ("method", "name"), "\x1b[2Jos"),
    "another version": lambda folder: change(folder / "config.json", ("method", "version"), 99),
    "colours that are none": lambda folder: change(folder / "config.json", ("mean",), "abc"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_export_of_somebody_elses_runs_nothing_and_is_refused_in_one_line(exported: Path, kind: str) -> None:
    HOSTILE[kind](exported)
    with pytest.raises(KdbenchError) as found:
        load_student(exported)
    assert len(str(found.value).splitlines()) == 1
    assert "\x1b" not in str(found.value)


def test_a_damaged_export_is_named(exported: Path) -> None:
    content = bytearray((exported / "inference.safetensors").read_bytes())
    content[-1] ^= 1
    (exported / "inference.safetensors").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"inference\.safetensors is damaged \(its checksum does not match\)"):
        load_student(exported)
    (exported / "config.json").write_text("{")
    with pytest.raises(DamagedFileError):
        load_student(exported)


def test_loading_leaves_the_random_numbers_of_others_alone(exported: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    load_student(exported)
    assert torch.equal(torch.rand(1), wanted)


# ONNX


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "simkd", "half"])
def test_the_graph_gives_torchs_logits_for_any_number_of_images(trained: Trained, tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    export_student(trained.cells[name], tmp_path / "out", onnx=True)
    student = load_student(tmp_path / "out")
    student.dtype = torch.float32
    session = runtime.InferenceSession(str(tmp_path / "out" / "student.onnx"))
    for count in (1, 7):
        images = torch.rand(count, 3, 32, 32)
        with torch.no_grad():
            wanted = student(images)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        assert np.abs(wanted.numpy() - found).max() <= 1e-4


def test_a_graph_with_other_logits_is_refused_with_the_difference(
    kdbench: Kdbench, cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    onnx = pytest.importorskip("kdbench.students.onnx")
    run = onnx._run
    monkeypatch.setattr(onnx, "_run", lambda content, images: run(content, images) + 0.25)
    assert "logits differ by 0.25 from torch's" in refused(kdbench, cell, tmp_path / "out", "--onnx")


def test_without_its_packages_onnx_is_refused_before_anything_is_written(
    kdbench: Kdbench, cell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'kdbench[onnx]'" in refused(kdbench, cell, tmp_path / "out", "--onnx")
