"""Teachers that come with weights: found, read safely, fitted, measured again, and refused where something is wrong."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import timm
import torch
import yaml
from torch import Tensor

from kdbench.datasets.download import fetch_file
from kdbench.engine.cell import CellTrainer
from kdbench.engine.prepare_teacher import rows_of
from kdbench.engine.train import teacher_spec
from kdbench.errors import KdbenchError
from kdbench.launch.job import job_for_teacher
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.method import Task
from kdbench.nets.tapped import TappedNet, state_hash
from kdbench.plugins.registry import catalog
from kdbench.store.files import read_json
from kdbench.store.folders import Store
from kdbench.store.rows import load_results
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.net import NetSpec
from kdbench.suite.suite import Suite
from kdbench.teachers.foreign import load_body, load_state
from kdbench.teachers.statedict import WeightsError
from kdbench.teachers.verification import Verdict, chance_complaint, judge
from kdbench.teachers.weights import find_weights, missing_weights
from tests.conftest import TINY, Said, tiny
from tests.records import teacher_result

pytestmark = pytest.mark.xdist_group("teachers")  # one process trains the net
Kdbench = Callable[..., Said]
State = dict[str, Tensor]
TAGGED = "test_resnet.r160_in1k"
ONCE = {
    "recipe": {"epochs": 1, "schedule": {"warmup_epochs": 0}},
    "teacher": {"epochs": 1, "schedule": {"warmup_epochs": 0}},
}


@pytest.fixture(scope="module")
def net() -> TappedNet:
    """The tiny suite's CNN, trained for a second: 90 % or so of the digits."""
    from kdbench.datasets.load import load_dataset

    torch.manual_seed(0)
    net = TappedNet(NetSpec.model_validate(TINY["nets"]["cnn"]), 10, "cnn")
    train = load_dataset("digits").train
    assert hasattr(train, "images")
    images, labels = train.images.float() / 255, train.labels
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(2):
        for part in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[part]).logits, labels[part]).backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def data(tmp_path: Path, net: TappedNet) -> Path:
    """A folder of data in whose ``weights/`` the CNN lies as ``cnn.pth``."""
    (tmp_path / "data" / "weights").mkdir(parents=True)
    torch.save(net.net.state_dict(), tmp_path / "data" / "weights" / "cnn.pth")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, net: TappedNet) -> Path:
    """A folder with the tiny suite, whose CNN comes with weights, and a run directory in which it was run. Copy it."""
    from kdbench.cli.parser import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "data" / "weights").mkdir(parents=True)
    torch.save(net.net.state_dict(), folder / "data" / "weights" / "cnn.pth")
    suite = tiny(nets={"cnn": {"weights": {"file": "cnn.pth"}}}, protocols={"short": ONCE})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    words = ["run", folder / "tiny.yaml", "--methods", "scratch", "--out", folder / "runs", "--data", folder / "data"]
    assert main([*map(str, words), "--on", "inprocess", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path, data: Path) -> Path:
    """The suite's file; its run directory is copied to where ``again`` runs."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return trained / "tiny.yaml"


@pytest.fixture
def suite(write_suite: Callable[..., Path]) -> Callable[..., Path]:
    """The tiny suite whose CNN comes with weights; the given fields describe them."""

    def write(published: float | None = None, **weights: Any) -> Path:
        net = {"weights": {"file": "cnn.pth", **weights}, "published_top1": published, "published_source": "a table"}
        return write_suite(nets={"cnn": net}, protocols={"short": ONCE})

    return write


@pytest.fixture
def again(kdbench: Kdbench, data: Path, tmp_path: Path) -> Kdbench:
    """Run a verb on a suite, in this process."""

    def run(verb: str, path: Path, *words: object) -> Said:
        where = ("--data", data, "--on", "inprocess", "--device", "cpu") if verb in ("run", "teachers") else ()
        return kdbench(verb, path, "--methods", "scratch", "--out", tmp_path / "runs", *where, *words)

    return run


def accuracy(net: TappedNet) -> float:
    from kdbench.datasets.load import load_dataset

    test = load_dataset("digits").test
    assert hasattr(test, "images")
    with torch.no_grad():
        predicted = net(test.images.float() / 255).logits.argmax(dim=1)
    return 100 * float((predicted == test.labels).double().mean())


def teacher_folder(runs: Path) -> Path:
    (folder,) = (runs / "teachers").glob("cnn-*")
    return folder


def tagged(weights: str) -> dict[str, Any]:
    """The tiny suite with a CNN of which timm has weights."""
    suite = tiny(protocols={"short": ONCE})
    suite["nets"]["cnn"] = {"timm": TAGGED, "weights": weights, "input_size": [32, 32], "family": "cnn"}
    return suite


def plan_of(choice: Request | None = None, **changes: Any) -> Plan:
    return make_plan(Suite.model_validate(tiny(**changes)), choice or Request(), catalog())


# A run with a teacher that comes with weights


def test_weights_are_loaded_measured_and_shown_beside_the_published_accuracy(
    again: Kdbench, suite: Callable[..., Path], net: TappedNet, tmp_path: Path, data: Path
) -> None:
    top1 = accuracy(net)
    assert top1 > 60  # else the tests below compare with nothing
    path = suite(published=round(top1, 1))
    said = again("run", path)
    assert said.status == 0, said.err
    assert "1 teacher to load and measure" in said.out
    line = f"teacher cnn: top-1 {top1:.2f} % on 500 test images, published {round(top1, 1):.2f} % (a table)"
    assert line in said.out
    assert line in again("status", path).out
    result = read_json(teacher_folder(tmp_path / "runs") / "result.json")
    assert result["checksum"] == state_hash(net.net)
    assert result["weights"]["file"] == str(data / "weights" / "cnn.pth")
    assert result["weights"]["file_sha256"] == hashlib.sha256((data / "weights" / "cnn.pth").read_bytes()).hexdigest()
    frame = load_results(tmp_path / "runs")
    assert frame["state"].tolist() == ["done"]
    assert frame["teacher_top1"].tolist() == pytest.approx([top1])


def test_second_run_uses_what_was_verified_and_needs_the_file_no_more(
    again: Kdbench, copied: Path, data: Path, tmp_path: Path
) -> None:
    stamp = (teacher_folder(tmp_path / "runs") / "result.json").stat().st_mtime_ns
    (data / "weights" / "cnn.pth").unlink()
    said = again("run", copied, "--seeds", "0,1")
    assert said.status == 0, said.err
    assert "to load and measure" not in said.out
    assert (teacher_folder(tmp_path / "runs") / "result.json").stat().st_mtime_ns == stamp


def test_a_teacher_far_from_its_published_accuracy_stops_the_run_before_anything_trains(
    again: Kdbench, suite: Callable[..., Path], net: TappedNet, tmp_path: Path
) -> None:
    path = suite(published=50.0)
    said = again("run", path)
    assert said.status == 2
    assert re.search(
        r"teacher cnn reaches \d+\.\d\d % top-1 on 500 test images, published 50.00 % \(a table\)", said.err
    )
    assert "expected here 49.00 to 51.00 %" in said.err
    assert said.err.count("\n") == 1
    assert set(load_results(tmp_path / "runs")["state"]) == {"planned"}
    accepted = again("run", path, "--teacher-tolerance", 60)
    assert accepted.status == 0, accepted.err
    assert "accepted only by --teacher-tolerance 60" in accepted.out
    record = read_json(teacher_folder(tmp_path / "runs") / "verification.json")
    assert record["accepted_only_by_tolerance"] is True
    assert record["tolerance"] == 60


def test_weights_in_the_run_directory_that_are_damaged_are_loaded_again(
    again: Kdbench, copied: Path, tmp_path: Path
) -> None:
    weights = teacher_folder(tmp_path / "runs") / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + b"damaged!")
    said = again("run", copied, "--seeds", "1")
    assert said.status == 0, said.err
    assert f"note: {weights} is damaged: teacher cnn is loaded again" in said.out
    assert weights.read_bytes() == whole


def test_weights_of_a_teacher_trained_here_that_are_damaged_are_trained_again(
    again: Kdbench, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_suite(protocols={"short": ONCE})
    again("run", path)
    weights = teacher_folder(tmp_path / "runs") / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    said = again("run", path, "--seeds", "1")
    assert said.status == 0, said.err
    assert "teacher cnn is trained again" in said.out
    assert weights.read_bytes() == whole


def test_a_file_that_changed_under_its_name_is_noted(again: Kdbench, copied: Path, data: Path) -> None:
    torch.save({"other": torch.zeros(1)}, data / "weights" / "cnn.pth")
    said = again("run", copied, "--seeds", "1")
    assert said.status == 0, said.err
    assert "has changed since teacher cnn was loaded from it" in said.out


def test_all_missing_weights_are_listed_in_one_message_before_anything_runs(
    again: Kdbench, write_suite: Callable[..., Path], tmp_path: Path, data: Path
) -> None:
    path = write_suite(
        nets={
            "cnn": {"weights": {"file": "a/one.pth", "url": "https://example.org/one.pth", "sha256": "0" * 64}},
            "vit": {"timm": "test_vit.r160_in1k", "weights": "timm", "args": {}},
        }
    )
    said = again("run", path, "--protocol", "seeds")
    assert said.status == 2
    first, *lines = said.err.splitlines()
    assert first.startswith(f"kdbench: the weights of 2 teachers are missing in {data / 'weights'};")
    assert len(lines) == 2
    assert f"put {data / 'weights' / 'a' / 'one.pth'} (sha256 {'0' * 64}); from https://example.org/one.pth" in lines[0]
    assert f"kdbench teachers {path} --train cnn" in lines[0]
    assert "test_vit.r160_in1k.safetensors; from Hugging Face timm/test_vit.r160_in1k" in lines[1]
    assert f"or make it here: kdbench teachers {path} --train vit (from scratch)" in lines[1]  # the file is timm's own
    assert not (tmp_path / "runs").exists()


def test_a_file_with_another_sha256_is_refused_before_anything_runs(
    again: Kdbench, suite: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    said = again("run", suite(sha256="ab" * 32))
    assert said.status == 2
    found = hashlib.sha256((data / "weights" / "cnn.pth").read_bytes()).hexdigest()
    assert f"cnn.pth has sha256 {found}, the suite expects {'ab' * 32}" in said.err
    assert not (tmp_path / "runs").exists()


def test_weights_that_do_not_fit_stop_the_run_with_one_line(
    again: Kdbench, suite: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    wider = timm.create_model("resnet_32px_small", num_classes=10, stem_width=8, stem_stride=2)
    torch.save(wider.state_dict(), data / "weights" / "cnn.pth")
    said = again("run", suite())
    assert said.status == 2
    assert "does not fit net cnn (resnet_32px_small, 10 classes)" in said.err
    assert "layer1.0.conv1.weight: found (16, 64, 3, 3), expected (8, 64, 3, 3)" in said.err
    assert said.err.count("\n") == 1
    assert set(load_results(tmp_path / "runs")["state"]) == {"planned"}


def test_a_plan_says_what_a_run_would_refuse(kdbench: Kdbench, suite: Callable[..., Path], tmp_path: Path) -> None:
    said = kdbench("plan", suite(), "--no-probe", "--out", tmp_path / "runs")
    assert said.status == 2
    assert "cnn: to be loaded from file cnn.pth" in said.out
    assert "missing: the weights of 1 teacher are missing" in said.out


# Fitting


def test_weights_of_another_architecture_are_named_as_such(net: TappedNet, tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_32px_small", num_classes=10).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(
        WeightsError, match=r"keys missing \(conv1\.weight, .*keys unknown.*likely another architecture"
    ):
        load_state(net, tmp_path / "vit.pth")


def test_a_classifier_of_other_classes_is_refused_with_what_to_do(tmp_path: Path) -> None:
    net = TappedNet(NetSpec(timm="mixer_32px_small"), 10, "mixer")
    torch.save(timm.create_model("mixer_32px_small", num_classes=100).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(WeightsError, match=r"has 100 classes, net mixer needs 10: .*--fine-tune-teachers mixer"):
        load_state(net, tmp_path / "wide.pth")


def test_rows_of_chosen_classes_are_taken_from_a_wider_classifier(tmp_path: Path) -> None:
    wide = timm.create_model("resnet_32px_small", num_classes=20).eval()
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    net = TappedNet(NetSpec(timm="resnet_32px_small"), 3, "net").eval()
    assert load_state(net, tmp_path / "wide.pth", [2, 5, 19], 20) == {
        "part": "",
        "classes": 20,
        "rows": 3,
        "resized": 0,
    }
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net.net(images), wide(images)[:, [2, 5, 19]], atol=1e-6)


def test_classes_of_imagenet_have_the_rows_of_their_wnids_in_order() -> None:
    rows, every = rows_of(DatasetSpec(name="imagenet1k", image_size=224, classes="imagenette"))
    # tench 0, English springer 217, cassette player 482, ..., parachute 701: as the data set's authors number them
    assert rows == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert every == 1000
    shuffled = DatasetSpec(name="imagenet1k", image_size=224, classes=("n02102040", "n01440764"))
    assert rows_of(shuffled)[0] == [0, 217]
    kept = DatasetSpec(name="imagenet1k", image_size=224, classes="imagenette", labels="kept")
    assert rows_of(kept) == (None, None)
    with pytest.raises(KdbenchError, match="'cat' is no WNID"):
        rows_of(DatasetSpec(name="imagenet1k", image_size=224, classes=("n02102040", "cat")))


def test_swin_weights_in_the_layout_of_older_timm_are_moved_to_their_places(tmp_path: Path) -> None:
    new = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    )
    state = new.state_dict()
    old = {}
    for key, value in state.items():
        key = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        old[key.replace("head.fc.", "head.")] = value
    assert old.keys() != state.keys()
    torch.save({"model": old}, tmp_path / "old.pth")
    args = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    net = TappedNet(NetSpec(timm="swin_tiny_patch4_window7_224", args=args), 5, "swin")
    assert load_state(net, tmp_path / "old.pth")["resized"] == 0
    assert state_hash(net.net) == state_hash(new)


def test_files_without_counts_of_batches_have_no_resized_tensors(net: TappedNet, tmp_path: Path) -> None:
    state = {key: value for key, value in net.net.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert len(state) < len(net.net.state_dict())
    torch.save(state, tmp_path / "old.pth")
    other = TappedNet(net.spec, 10, "cnn")
    assert load_state(other, tmp_path / "old.pth")["resized"] == 0
    assert all(torch.equal(other.net.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_key(net: TappedNet, tmp_path: Path, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in net.net.state_dict().items()}
    state["conv1.weight"].view(-1)[3] = value
    torch.save(state, tmp_path / "broken.pth")
    for load in (load_state, load_body):
        with pytest.raises(
            WeightsError, match=r"1 tensor of net cnn holds numbers that are not finite \(conv1\.weight\)"
        ):
            load(TappedNet(net.spec, 10, "cnn"), tmp_path / "broken.pth")


def test_weights_whose_logits_overflow_stop_the_run(
    again: Kdbench, suite: Callable[..., Path], net: TappedNet, data: Path
) -> None:
    state = {key: value.clone() for key, value in net.net.state_dict().items()}
    state["fc.weight"].fill_(3e38)
    torch.save(state, data / "weights" / "cnn.pth")
    said = again("run", suite())
    assert said.status == 2
    assert "teacher cnn: its logits are not finite for 500 of 500 test images" in said.err
    assert said.err.count("\n") == 1


def test_a_teacher_with_another_class_order_stops_the_run_with_the_order_that_counts(
    again: Kdbench, write_suite: Callable[..., Path], net: TappedNet, data: Path
) -> None:
    state = {key: value.clone() for key, value in net.net.state_dict().items()}
    for key in ("fc.weight", "fc.bias"):
        state[key] = state[key].roll(1, dims=0)
    torch.save(state, data / "weights" / "cnn.pth")
    content = tiny(nets={"cnn": {"weights": {"file": "cnn.pth"}}}, protocols={"short": ONCE})
    content["protocols"]["smoke"] = {**content["protocols"]["short"]}
    path = write_suite(content)
    said = again("run", path)
    assert said.status == 2
    # ten classes, 500 images: 10 + 3 * 100 * sqrt(0.1 * 0.9 / 500)
    assert re.search(
        r"teacher cnn reaches \d\.\d\d % top-1 on 500 test images, which is not above guessing \(14\.02 %\): another class order\? "
        r"Here they have the numbers of the data set",
        said.err,
    ), said.err
    assert said.err.count("\n") == 1
    tolerance = int(re.search(r"--teacher-tolerance (\d+)", said.err)[1])  # type: ignore[index]
    assert again("run", path, "--teacher-tolerance", tolerance - 2).status == 2
    accepted = again("run", path, "--teacher-tolerance", tolerance)
    assert accepted.status == 0, accepted.err
    noted = again("run", path, "--protocol", "smoke")
    assert noted.status == 0, noted.err
    assert "not above guessing (14.02 %)" in noted.out


def test_names_of_files_cannot_leave_the_folder() -> None:
    for name in ("../x.pth", "/etc/passwd", "a/../../x.pth", "~/x.pth", "a\\..\\x.pth"):
        with pytest.raises(ValueError, match="leaves the folder of the weights"):
            NetSpec.model_validate({"timm": "resnet18", "weights": {"file": name}})
    for field in ("file", "url"):
        with pytest.raises(ValueError, match=r"a\\nb' has a character that cannot be printed"):
            NetSpec.model_validate({"timm": "resnet18", "weights": {"file": "x", field: "https://a\nb"}})
    with pytest.raises(ValueError, match="no address that begins with https"):
        NetSpec.model_validate({"timm": "resnet18", "weights": {"file": "x", "url": "file:///etc/passwd"}})


def test_tensors_that_timm_resizes_are_counted(tmp_path: Path) -> None:
    small = timm.create_model("test_vit", num_classes=5, img_size=64)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    net = TappedNet(NetSpec(timm="test_vit", args={"img_size": 96}, input_size=(96, 96)), 5, "vit")
    assert load_state(net, tmp_path / "small.pth")["resized"] == 1


# Where weights lie


def test_weights_of_timm_are_found_in_the_folder_and_in_the_cache_of_hugging_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    net = NetSpec(timm=TAGGED, weights="timm")
    assert find_weights("net", net, tmp_path).path is None
    snapshot = tmp_path / "hub" / f"models--timm--{TAGGED}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").write_bytes(b"x")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert find_weights("net", net, None).path == snapshot / "pytorch_model.bin"
    (tmp_path / f"{TAGGED}.pth").write_bytes(b"x")
    assert find_weights("net", net, tmp_path).path == tmp_path / f"{TAGGED}.pth"


def test_weights_that_timm_does_not_have_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(KdbenchError, match=r"timm has no weights resnet18\.a1_in1kk; did you mean 'resnet18\.a1_in1k'"):
        find_weights("net", NetSpec(timm="resnet18.a1_in1kk", weights="timm"), None)
    with pytest.raises(KdbenchError, match="it has none of resnet_32px_small"):
        find_weights("net", NetSpec(timm="resnet_32px_small.x", weights="timm"), None)
    with pytest.raises(ValueError, match=r"needs the tag of timm's weights in the name.*'resnet18'"):
        NetSpec(timm="resnet18", weights="timm")


def test_a_message_on_missing_weights_names_who_made_them_where_there_is_no_address() -> None:
    net = NetSpec.model_validate(
        {"timm": "resnet18", "weights": {"file": "x.pth", "source": "the authors, on request"}}
    )
    error = missing_weights([find_weights("t", net, None)], "mine")
    assert "kdbench teachers mine --train t" in error.lines[0]
    assert "from the authors, on request" in error.lines[0]
    tagged = find_weights("t", net.model_copy(update={"timm": TAGGED}), None)
    (line,) = missing_weights([tagged], "mine").lines
    assert "--fine-tune t (from timm's weights) or kdbench teachers mine --train t (from scratch)" in line


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves ``CONTENT``; the first answer to each path breaks off in the middle."""

    CONTENT = bytes(range(256)) * 40
    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        begin = int(asked[6:-1]) if asked else 0
        body = self.CONTENT[begin:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if asked or self.path == "/whole" else body[:6000])

    def log_message(self, *words: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    _Server.ranges = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_a_download_that_broke_off_goes_on_and_is_kept_only_when_it_is_right(server: str, tmp_path: Path) -> None:
    path, sha256 = tmp_path / "weights" / "x.pth", hashlib.sha256(_Server.CONTENT).hexdigest()
    with pytest.raises(
        KdbenchError, match=r"did not come whole \(6,000 of 10,240 bytes\); another try goes on from there"
    ):
        fetch_file(f"{server}/half", path, sha256)
    assert not path.exists()
    fetch_file(f"{server}/half", path, sha256)
    assert path.read_bytes() == _Server.CONTENT
    assert _Server.ranges == [None, "bytes=6000-"]
    with pytest.raises(KdbenchError, match=r"is not what it was .* expected sha256 000"):
        fetch_file(f"{server}/whole", tmp_path / "other.pth", "0" * 64)
    with pytest.raises(KdbenchError, match="did not come whole"):
        fetch_file(f"{server}/half", tmp_path / "third.pth")
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["x.pth"]
    with pytest.raises(KdbenchError, match=r"cannot be downloaded .* is there a network"):
        fetch_file("http://127.0.0.1:1/x.pth", tmp_path / "fourth.pth")


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Sends on to ftp, or says with which name and password it was asked."""

    def do_GET(self) -> None:
        if self.path == "/ftp":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1:1/x")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(self.headers.get("Authorization")).encode())

    def log_message(self, *words: Any) -> None:
        return


def test_downloads_stay_on_the_web_and_passwords_out_of_messages(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            place = f"127.0.0.1:{running.server_address[1]}"
            with pytest.raises(
                KdbenchError, match=r"redirected to ftp://127\.0\.0\.1:1/x, which is no address of http"
            ):
                fetch_file(f"http://{place}/ftp", tmp_path / "x")
            fetch_file(f"http://me:secr%40t@{place}/x", tmp_path / "y")
            assert (tmp_path / "y").read_text() == f"Basic {base64.b64encode(b'me:secr@t').decode()}"
        finally:
            running.shutdown()
            thread.join()
    for url in ("http://me:secret@127.0.0.1:1/x", "http://me:sec@ret@127.0.0.1:x/x"):
        with pytest.raises(KdbenchError, match=r"http://\*\*\*@127\.0\.0\.1:.*cannot be downloaded") as caught:
            fetch_file(url, tmp_path / "z")
        assert "ret" not in str(caught.value).replace(str(tmp_path), "")
    net = NetSpec.model_validate({"timm": "resnet18", "weights": {"file": "x", "url": "https://me:secret@host/x"}})
    assert find_weights("t", net, None).where_to_get == "https://***@host/x"
    with pytest.raises(ValueError, match=r"'ftp://\*\*\*@host/x' is no address"):
        NetSpec.model_validate({"timm": "resnet18", "weights": {"file": "x", "url": "ftp://me:secret@host/x"}})


# kdbench teachers


def test_teachers_are_listed_with_their_weights_and_what_is_known_of_them(
    again: Kdbench, suite: Callable[..., Path], data: Path, kdbench: Kdbench, tmp_path: Path
) -> None:
    path = suite(published=88.8)
    said = again("teachers", path, "--protocol", "seeds")
    assert said.status == 0
    assert "suite tiny, protocol seeds: 2 teachers" in said.out
    cnn, vit = said.out.splitlines()[3:5]
    assert all(part in cnn for part in ("resnet_32px_small", "file cnn.pth", str(data / "weights"), "88.80"))
    assert "trained here" in vit
    rows = json.loads(again("teachers", path, "--json").out)
    assert [(row["teacher"], row["top1"]) for row in rows] == [("cnn", None)]
    (data / "weights" / "cnn.pth").unlink()
    assert "cnn: missing; available from the authors (the suite gives no address)" in again("teachers", path).out
    assert not (tmp_path / "runs").exists()


def test_verify_measures_teachers_again_and_fails_for_one_far_off(
    again: Kdbench, suite: Callable[..., Path], net: TappedNet
) -> None:
    path = suite(published=round(accuracy(net), 1))
    first = again("teachers", path, "--verify")
    assert first.status == 0, first.err
    assert "1 teacher to load and measure" in first.out
    second = again("teachers", path, "--verify")
    assert second.status == 0
    assert f"teacher cnn: measured again, top-1 {accuracy(net):.2f} %\n" in second.out
    off = again("teachers", suite(published=30.0), "--verify")
    assert off.status == 1
    assert "teacher cnn reaches" in off.err
    assert "(deviates)" in off.out


def test_a_teacher_can_be_trained_here_instead_and_is_another_teacher(
    again: Kdbench, suite: Callable[..., Path], tmp_path: Path, data: Path
) -> None:
    path = suite(published=99.0)
    (data / "weights" / "cnn.pth").unlink()
    said = again("teachers", path, "--train", "cnn")
    assert said.status == 0, said.err
    assert f"they are used by: kdbench run {path} --train-teachers cnn" in said.out
    (folder,) = (tmp_path / "runs" / "teachers").iterdir()
    ran = again("run", path, "--train-teachers", "c*")
    assert ran.status == 0, ran.err
    assert [item.name for item in (tmp_path / "runs" / "teachers").iterdir()] == [folder.name]
    for verb, words in (("leaderboard", "From scratch"), ("status", "cnn--vit 1")):  # which find it by themselves
        assert words in " ".join(again(verb, path).out.split())


def test_fetch_takes_weights_by_their_address(
    again: Kdbench, suite: Callable[..., Path], data: Path, server: str
) -> None:
    (data / "weights" / "cnn.pth").unlink()
    path = suite(url=f"{server}/whole")
    said = again("teachers", path, "--fetch")
    assert said.status == 0, said.err
    assert (data / "weights" / "cnn.pth").read_bytes() == _Server.CONTENT
    (data / "weights" / "cnn.pth").unlink()
    failed = again("teachers", suite(), "--fetch")
    assert failed.status == 1
    assert "the suite gives no address" in failed.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--train-teachers", "cn"), "unknown teacher 'cn' in suite tiny; did you mean 'cnn'?"),
        (("--train-teachers", "cnn", "--fine-tune-teachers", "all"), "teacher cnn is in both"),
        (("--fine-tune-teachers", "cnn"), "teacher cnn: weights: finetune needs the tag of timm's weights"),
        (("--teacher-tolerance", "many"), "'many' is not a number of points"),
    ],
)
def test_a_wrong_choice_of_teachers_is_one_line(
    again: Kdbench, suite: Callable[..., Path], words: tuple[str, ...], problem: str
) -> None:
    said = again("run", suite(), *words)
    assert said.status == 2
    assert problem in said.err
    assert said.err.count("\n") == 1


# Identity


def test_identity_of_weights_is_their_checksum_and_not_where_they_lie() -> None:
    def hash_of(**weights: Any) -> str:
        return plan_of(nets={"cnn": {"weights": weights, "published_top1": 80}}).teachers[0].hash

    known = hash_of(file="a.pth", sha256="0" * 64)
    assert known == hash_of(file="b.pth", sha256="0" * 64, url="https://example.org/b.pth", source="moved")
    assert known != hash_of(file="a.pth", sha256="1" * 64)
    assert hash_of(file="a.pth") != hash_of(file="b.pth")
    trained = plan_of(Request(train_teachers=("cnn",)), nets={"cnn": {"weights": {"file": "a.pth"}}})
    assert trained.teachers[0].hash == plan_of().teachers[0].hash
    assert [cell.hash for cell in trained.cells] == [cell.hash for cell in plan_of().cells]


def test_a_student_starts_from_scratch_whatever_its_weights() -> None:
    plain, weighted = (plan_of(nets={"vit": {"weights": weights}}) for weights in ("train", {"file": "vit.pth"}))
    assert [cell.hash for cell in plain.cells] == [cell.hash for cell in weighted.cells]


def test_teachers_that_see_different_students_preprocessing_are_different_jobs() -> None:
    plan = plan_of(
        nets={"cnn": {"weights": {"file": "a.pth"}}, "mlp": {"mean": [0.4, 0.4, 0.4]}},
        protocols={"short": {"teacher_preprocessing": "student", "pairs": ["cnn--*"]}},
    )
    assert len(plan.teachers) == 2
    assert len({job_for_teacher(plan, teacher).name for teacher in plan.teachers}) == 2
    assert all(teacher.seen_through for teacher in plan.teachers)


# Fine-tuning


def test_fine_tuning_starts_from_timms_weights_with_a_new_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model(TAGGED, pretrained=False)
    safetensors.torch.save_file(source.state_dict(), tmp_path / f"{TAGGED}.safetensors")
    plan = make_plan(Suite.model_validate(tagged("finetune")), Request(), catalog())
    (teacher,) = plan.teachers
    assert teacher.trained_here
    start = find_weights("cnn", teacher.net, tmp_path).path
    spec = teacher_spec(plan, teacher, Store(tmp_path / "runs"), start)
    scratch = teacher_spec(plan, teacher, Store(tmp_path / "runs"))
    task = Task(10, 100, torch.zeros(100, dtype=torch.int64), "digits")
    tuned, fresh = (CellTrainer(each, task, None, 5, torch.device("cpu")).student.net for each in (spec, scratch))
    classifier = {"fc.weight", "fc.bias"}
    for key, value in tuned.state_dict().items():
        expected = fresh.state_dict()[key] if key in classifier else source.state_dict()[key]
        assert torch.equal(value, expected), key


def test_a_teacher_is_fine_tuned_from_the_command_line_and_its_result_says_from_what(
    again: Kdbench, write_suite: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    source = timm.create_model(TAGGED, pretrained=False)
    safetensors.torch.save_file(source.state_dict(), data / "weights" / f"{TAGGED}.safetensors")
    path = write_suite(yaml.safe_dump(tagged("train")))
    said = again("teachers", path, "--fine-tune", "cnn")
    assert said.status == 0, said.err
    assert f"fine-tuned here from timm {TAGGED}" in said.out
    result = read_json(teacher_folder(tmp_path / "runs") / "result.json")
    assert result["weights"]["origin"] == f"timm {TAGGED}"


def test_a_body_keeps_the_nets_own_classifier(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_32px_small", num_classes=100).state_dict(), tmp_path / "wide.pth")
    net = TappedNet(NetSpec(timm="vit_32px_small"), 10, "vit")
    before = net.net.state_dict()["head.weight"].clone()
    assert load_body(net, tmp_path / "wide.pth")["classes"] == 100
    assert torch.equal(net.net.state_dict()["head.weight"], before)


# The bounds


@pytest.mark.parametrize(
    ("measured", "images", "classes", "agrees"),
    [
        (79.2, 50_000, None, True),
        (78.7, 50_000, None, False),
        (81.2, 50_000, None, False),
        # 500 of 50,000 images: the standard error at 80 % is 1.78 points, four of them and one are 8.1
        (72.0, 500, None, True),
        (71.7, 500, None, False),
        # ten chosen classes: 1 + 4 * 20 / sqrt(10) + 4 * 1.79 points below 80 are 46.5; nothing is too good
        (99.0, 500, 10, True),
        (47.0, 500, 10, True),
        (46.0, 500, 10, False),
    ],
)
def test_an_accuracy_is_judged_by_the_number_of_images_and_classes(
    measured: float, images: int, classes: int | None, agrees: bool
) -> None:
    plan = plan_of(nets={"cnn": {"weights": {"file": "a.pth"}, "published_top1": 80.0}})
    result = teacher_result(plan.teachers[0], top1=measured).model_copy(
        update={
            "images": images,
            "split_images": 500 if classes else 50_000,
            "chosen_classes": classes,
            "classes": classes or 1000,
        }
    )
    verdict = judge(plan.teachers[0], result)
    assert verdict.compared
    assert verdict.agrees is agrees


def test_the_order_of_classes_is_said_of_a_teacher_that_guesses() -> None:
    said = chance_complaint("t", Verdict(0.0, 500, floor=14.02, guesses=True), ("ant", "bee", "cat", "dog", "elk"))
    assert "another class order? Here the classes are 0 ant, 1 bee, 2 cat, 4 elk. Or wrong weights" in said
    assert "--teacher-tolerance 16 continues" in said


def test_too_few_images_are_not_compared() -> None:
    plan = plan_of(nets={"cnn": {"weights": {"file": "a.pth"}, "published_top1": 80.0}})
    result = teacher_result(plan.teachers[0], top1=0.0).model_copy(
        update={"images": 4, "split_images": 50_000, "chosen_classes": None, "classes": 10}
    )
    verdict = judge(plan.teachers[0], result)
    assert verdict.agrees
    assert not verdict.compared
    assert "too wide to compare" in str(verdict)
