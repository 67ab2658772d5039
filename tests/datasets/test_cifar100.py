"""CIFAR-100: its files and how bad ones are refused, its splits, fetching it, and the suite on it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.data.images import Dataset
from kdbench.datasets import cifar100
from kdbench.datasets.download import FileFacts, facts_of, fetch_file, unpack
from kdbench.datasets.load import check_dataset, download_dataset, load_dataset
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.suite.dataset import DatasetSpec
from kdbench.suite.suite import Suite, load_suite, merge

TRAIN_PER_CLASS, TEST_PER_CLASS, HELD_OUT = 4, 2, 1


# Small files in the format of the official ones, which Python 2 wrote: byte strings, and NumPy's old names.


def pickled(value: Any) -> bytes:
    """A pickle of dictionaries, lists, byte strings, whole numbers and arrays of bytes, opcode by opcode."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    kind = _opcodes(value.dtype.str[1:].encode())
    shape = b"(" + b"".join(map(_opcodes, value.shape)) + b"t"
    dtype = b"cnumpy\ndtype\n" + kind + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"


def calling(module: str, name: str, argument: bytes) -> bytes:
    """A pickle that calls a function when it is read."""
    return f"c{module}\n{name}\n".encode() + b"(" + _opcodes(argument) + b"tR."


def contents() -> dict[str, Any]:
    """What the three files hold: labels in turn, the superclass of class c is c modulo 20, pixels at random."""
    draw = np.random.Generator(np.random.PCG64(0))

    def images(per_class: int) -> dict[bytes, Any]:
        fine = [index % 100 for index in range(100 * per_class)]
        return {
            b"filenames": [b"image_%d.png" % index for index in range(len(fine))],
            b"batch_label": b"of a test",
            b"fine_labels": fine,
            b"coarse_labels": [label % 20 for label in fine],
            b"data": draw.integers(0, 256, (len(fine), 3072), dtype=np.uint8),
        }

    names = {
        b"fine_label_names": [b"class_%d" % index for index in range(100)],
        b"coarse_label_names": [b"group_%d" % index for index in range(20)],
    }
    return {"train": images(TRAIN_PER_CLASS), "test": images(TEST_PER_CLASS), "meta": names}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write small files that pass for the official ones; returns the folder that holds ``cifar-100-python``."""
    monkeypatch.setattr(cifar100, "VALIDATION_PER_CLASS", HELD_OUT)

    def write(**changed: Any) -> Path:
        folder = tmp_path / "data" / "cifar-100-python"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**contents(), **changed}.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else pickled(content))
        monkeypatch.setattr(cifar100, "FILES", {name: facts_of(folder / name) for name in ("train", "test", "meta")})
        return folder.parent

    return write


def refusal(folder: Path | None, action: Callable[[Path | None], Any] = cifar100.load) -> str:
    with pytest.raises(KdbenchError) as caught:
        action(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is loaded


def test_images_labels_and_names_are_those_of_the_files(write: Callable[..., Path]) -> None:
    dataset = load_dataset("cifar100", write())
    official = contents()
    for part, name in ((dataset.train, "train"), (dataset.test, "test")):
        raw = official[name][b"data"]
        assert part.images.dtype == torch.uint8
        assert part.images.shape == (len(raw), 3, 32, 32)
        # a row is 1,024 red values, then 1,024 green, then 1,024 blue, each row by row
        assert part.images[3, 1, 5, 7] == raw[3, 1024 + 5 * 32 + 7]
        assert np.array_equal(part.images.numpy().reshape(len(raw), -1), raw)
        assert part.labels.tolist() == official[name][b"fine_labels"]
        assert part.labels.dtype == torch.int64
    assert dataset.num_classes == 100
    assert dataset.class_names is not None
    assert dataset.class_names[42] == "class_42"
    assert dataset.coarse == tuple(label % 20 for label in range(100))
    assert dataset.coarse_names is not None
    assert dataset.coarse_names[19] == "group_19"


def test_folder_itself_and_the_one_that_holds_it_are_both_accepted(write: Callable[..., Path]) -> None:
    parent = write()
    whole = load_dataset("cifar100", parent).checksum()
    assert load_dataset("cifar100", parent / "cifar-100-python").checksum() == whole
    renamed = (parent / "cifar-100-python").rename(parent / "mine")
    assert load_dataset("cifar100", renamed).checksum() == whole
    check_dataset("cifar100", renamed)


def test_loaded_images_may_be_written_to(write: Callable[..., Path]) -> None:
    dataset = load_dataset("cifar100", write())
    dataset.train.images[0].zero_()  # torch warns of an array that is lent out read-only, and warnings are errors here


# Splits


def test_test_protocol_trains_on_all_images_and_validation_protocol_on_those_that_are_not_held_out(
    write: Callable[..., Path],
) -> None:
    dataset = load_dataset("cifar100", write())
    assert dataset.for_split("test") is dataset
    assert len(dataset.training()) == 100 * TRAIN_PER_CLASS
    held_out = dataset.for_split("validation")
    assert len(held_out.training()) == 100 * (TRAIN_PER_CLASS - HELD_OUT)
    assert held_out.split("validation").labels.bincount().tolist() == [HELD_OUT] * 100
    assert held_out.train.labels.bincount().tolist() == [TRAIN_PER_CLASS - HELD_OUT] * 100
    assert torch.equal(held_out.test.images, dataset.test.images)

    def pictures(part: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in part.images}

    assert not pictures(held_out.train) & pictures(held_out.validation)
    assert pictures(held_out.train) | pictures(held_out.validation) == pictures(dataset.train)


def test_validation_images_cannot_be_measured_while_they_are_trained_on(write: Callable[..., Path]) -> None:
    dataset = load_dataset("cifar100", write())
    with pytest.raises(KdbenchError, match="still in its training split"):
        dataset.measured("validation")


def test_data_set_with_its_own_validation_images_is_the_same_for_every_split() -> None:
    digits = load_dataset("digits")
    assert digits.for_split("validation") is digits
    assert len(digits.measured("validation")) == 300
    assert digits.measured("test", 3).labels.bincount().tolist() == [3] * 10
    assert digits.training(7).labels.bincount().tolist() == [7] * 10


def test_who_is_held_out_depends_on_the_position_alone() -> None:
    labels = np.arange(60) % 3
    ranks = {index: hashlib.sha256(b"kdbench cifar100 %d" % index).digest() for index in range(60)}
    expected = sorted(index for label in range(3) for index in sorted(range(label, 60, 3), key=ranks.__getitem__)[:5])
    assert cifar100.held_out_positions(labels, 5).tolist() == expected


def test_catalog_counts_the_images_that_a_split_leaves_for_training() -> None:
    entry = DatasetSpec(name="cifar100")
    assert entry.training_images("test") == 50_000
    assert entry.training_images("validation") == 45_000
    assert entry.training_images("validation", 20) == 2_000
    assert DatasetSpec(name="digits").training_images("validation") == 997


# Bad data


def test_no_folder_is_said_with_the_two_ways_to_name_one() -> None:
    for action in (cifar100.load, cifar100.check):
        message = refusal(None, action)
        assert "--data DIR or $KDBENCH_DATA (not set)" in message
        assert cifar100.URL in message
    assert "--data DIR or $KDBENCH_DATA (not set)" in refusal(None, cifar100.download)


def test_missing_folder_is_said_with_where_to_get_it(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} does not exist" in refusal(tmp_path / "no")
    message = refusal(tmp_path)
    assert f"there is no cifar-100-python/ in {tmp_path}" in message
    assert cifar100.URL in message


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_missing_file_is_named_with_what_was_expected(write: Callable[..., Path], name: str) -> None:
    folder = write()
    path = folder / "cifar-100-python" / name
    expected = facts_of(path)
    path.unlink()
    for action in (cifar100.load, cifar100.check):
        message = refusal(folder, action)
        assert f"{path} is missing; expected {expected.size:,} bytes, md5 {expected.md5}" in message
        assert cifar100.URL in message
    path.mkdir()
    assert f"{path} is no file" in refusal(folder)


def test_half_copied_file_is_named_with_size_and_md5_found_and_expected(write: Callable[..., Path]) -> None:
    folder = write()
    path = folder / "cifar-100-python" / "train"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for action in (cifar100.load, cifar100.check):
        message = refusal(folder, action)
        assert str(path) in message
        assert str(facts_of(path)) in message
        assert f"expected {cifar100.FILES['train']}" in message
        assert "only part of it was copied" in message


def test_changed_byte_is_found_though_the_size_is_right(write: Callable[..., Path]) -> None:
    folder = write()
    path = folder / "cifar-100-python" / "test"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    for action in (cifar100.load, cifar100.check):
        message = refusal(folder, action)
        assert f"{path} has {facts_of(path)}" in message
        assert "it is another file, or damaged" in message


def test_archive_in_the_place_of_the_folder_is_said_with_how_to_unpack_it(tmp_path: Path) -> None:
    packed = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-100-python/train"))
    command = f"tar -xf {packed} -C {tmp_path}"
    assert command in refusal(packed)
    assert command in refusal(tmp_path)
    renamed = packed.rename(tmp_path / "cifar-100-python")
    assert f"tar -xf {renamed} -C {tmp_path}" in refusal(tmp_path)
    renamed.write_text("hello")
    assert "is a file; expected a folder" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "cifar-100-python" / "train").chmod(0)
    assert "cannot be read (Permission denied)" in refusal(folder)


def wrong(part: str, key: str, value: Any) -> dict[str, Any]:
    return {part: {**contents()[part], key.encode(): value}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": b"hello"}, "is no file of this data set"),
        ({"train": b""}, "is no file of this data set"),
        ({"train": pickled(contents()["train"])[:-9]}, "is no file of this data set"),
        (wrong("test", "data", np.zeros((200, 3072), np.int64)), "an array of b'i8', not of bytes"),
    ],
)
def test_wrong_content_is_refused_in_one_line(write: Callable[..., Path], changed: dict[str, Any], said: str) -> None:
    folder = write(**changed)
    message = refusal(folder)
    assert said in message
    assert str(folder / "cifar-100-python") in message


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("__builtin__", "eval"), ("numpy", "load"),
     ("numpy.core.multiarray", "scalar"), ("kdbench.datasets.cifar100", "load"), ("no_such_module", "thing")],
)  # fmt: skip
def test_pickle_that_calls_anything_else_is_refused_and_nothing_is_called(
    write: Callable[..., Path], tmp_path: Path, module: str, name: str
) -> None:
    trap = tmp_path / "called"
    folder = write(train=calling(module, name, f"touch {trap}".encode()))
    assert f"it asks for {module}.{name}" in refusal(folder)
    assert not trap.exists()


# Fetching


def pack(path: Path, folder: Path, **changed: tarfile.TarInfo | None) -> FileFacts:
    """Pack the files of ``folder`` as the official archive is packed; ``changed`` members become something else."""
    with tarfile.open(path, "w:gz") as tar:
        for name in ("train", "test", "meta"):
            if name not in changed:
                tar.add(folder / name, f"cifar-100-python/{name}")
            elif changed[name] is not None:
                tar.addfile(changed[name])
        evil = tarfile.TarInfo("../evil")
        evil.size = 4
        tar.addfile(evil, io.BytesIO(b"evil"))
    return facts_of(path)


@pytest.fixture
def served(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in the place of the official one; returns its path."""
    folder = write() / "cifar-100-python"
    (tmp_path / "served").mkdir()
    archive = tmp_path / "served" / "cifar-100-python.tar.gz"
    monkeypatch.setattr(cifar100, "ARCHIVE", pack(archive, folder))
    monkeypatch.setattr(cifar100, "URL", archive.as_uri())
    return archive


def test_download_brings_what_loads_and_nothing_else(served: Path, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    seen: list[tuple[int, int]] = []
    download_dataset("cifar100", target, lambda done, size: seen.append((done, size)))
    assert sorted(path.name for path in target.rglob("*")) == ["cifar-100-python", "meta", "test", "train"]
    assert not list(tmp_path.rglob("evil"))
    assert len(load_dataset("cifar100", target).train) == 400
    assert seen[-1] == (cifar100.ARCHIVE.size, cifar100.ARCHIVE.size)


def test_download_goes_into_the_folder_itself_too_and_not_twice(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cifar-100-python"
    cifar100.download(target)
    assert sorted(path.name for path in target.iterdir()) == ["meta", "test", "train"]
    monkeypatch.setattr(cifar100, "URL", "file:///no/such/thing")
    cifar100.download(target)
    cifar100.download(tmp_path)
    (target / "train").write_bytes(b"half")
    assert "cannot be downloaded" in refusal(target, cifar100.download)
    assert (target / "train").read_bytes() == b"half"


def test_download_of_another_archive_keeps_nothing(served: Path, tmp_path: Path) -> None:
    served.write_bytes(served.read_bytes() + b"more")
    message = refusal(tmp_path / "new", cifar100.download)
    assert f"expected {cifar100.ARCHIVE}" in message
    assert not list((tmp_path / "new").rglob("*"))
    served.write_bytes(served.read_bytes()[:1000])
    assert "1,000 bytes" in refusal(tmp_path / "new", cifar100.download)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_member_that_is_no_plain_file_is_refused(served: Path, tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    info = tarfile.TarInfo("cifar-100-python/train")
    info.type, info.linkname = kind, str(secret)
    archive = tmp_path / "links.tar.gz"
    pack(archive, tmp_path / "data" / "cifar-100-python", train=info)
    with pytest.raises(KdbenchError, match="cifar-100-python/train is no plain file"):
        unpack(archive, {"cifar-100-python/train": (tmp_path / "out", cifar100.FILES["train"])})
    assert secret.read_text() == "secret"
    assert not (tmp_path / "out").exists()


def test_member_that_is_missing_or_too_long_is_refused(served: Path, tmp_path: Path) -> None:
    archive = tmp_path / "short.tar.gz"
    pack(archive, tmp_path / "data" / "cifar-100-python", train=None)
    with pytest.raises(KdbenchError, match="does not hold cifar-100-python/train"):
        unpack(archive, {"cifar-100-python/train": (tmp_path / "out", cifar100.FILES["train"])})
    with pytest.raises(KdbenchError, match="cifar-100-python/meta has 11 bytes"):
        unpack(archive, {"cifar-100-python/meta": (tmp_path / "out", FileFacts(10, "0" * 32))})
    archive.write_bytes(b"\x1f\x8bno")
    with pytest.raises(KdbenchError, match="cannot be unpacked"):
        unpack(archive, {"cifar-100-python/meta": (tmp_path / "out", FileFacts(10, "0" * 32))})
    assert not (tmp_path / "out").exists()


def test_no_network_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(KdbenchError, match=r"cannot be downloaded .*is there a network") as caught:
        fetch_file("http://127.0.0.1:9/thing", tmp_path / "thing")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_command_line_says_that_data_are_missing_before_anything_runs(
    kdbench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    words = ("run", "cifar100-32", "--protocol", "smoke", "--methods", "kd", "--pairs", "swin-l--convnext-s")
    said = kdbench(*words, "--out", tmp_path / "runs")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "$KDBENCH_DATA (not set)" in said.err
    said = kdbench(*words, "--out", tmp_path / "runs", "--data", tmp_path / "no")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert not list((tmp_path / "runs").rglob("worker.log"))


def test_command_line_fetches_the_data_when_asked(kdbench: Callable[..., Any], served: Path, tmp_path: Path) -> None:
    words = ("plan", "cifar100-32", "--protocol", "smoke", "--methods", "kd", "--pairs", "swin-l--convnext-s")
    said = kdbench(*words, "--no-probe", "--out", tmp_path / "runs", "--data", tmp_path / "new", "--download")
    assert said.status == 0, said.err
    assert (tmp_path / "new" / "cifar-100-python" / "train").is_file()


# The suite


def plan(changes: dict[str, Any] | None = None, **choice: Any) -> Plan:
    suite = load_suite("cifar100-32")
    if changes:
        suite = Suite.model_validate(merge(suite.model_dump(), changes))
    return make_plan(suite, Request(**choice), catalog())


def test_suite_pairs_every_family_with_every_other_twice_and_has_a_control_in_each() -> None:
    suite = load_suite("cifar100-32")
    families = [tuple(str(suite.net(net).family) for net in pair.split("--")) for pair in suite.pairs]
    kinds = ("cnn", "vit", "mlp")
    for teacher in kinds:
        for student in kinds:
            assert families.count((teacher, student)) == (1 if teacher == student else 2)
    assert {net for pair in suite.pairs for net in pair.split("--")} == set(suite.nets)
    assert all(pair.split("--")[0].endswith("-l") and pair.endswith("-s") for pair in suite.pairs)


def test_short_protocols_use_every_family_once_as_teacher_and_once_as_student() -> None:
    suite = load_suite("cifar100-32")
    for protocol in ("smoke", "short"):
        pairs = [pair.split("--") for pair in suite.under(protocol).pairs]
        for side in (0, 1):
            assert sorted(str(suite.net(pair[side]).family) for pair in pairs) == ["cnn", "mlp", "vit"]


def test_rate_of_cnn_students_falls_after_epochs_150_180_and_210() -> None:
    from kdbench.engine.optim import Schedule, build_optim_wrapper

    recipe = load_suite("cifar100-32").under("paper").recipes["cnn"]
    wrapper = build_optim_wrapper(nn.Linear(2, 2), nn.Identity(), recipe)
    schedule = Schedule(wrapper.optimizer, recipe, 10)
    rates = {}
    for epoch in range(1, recipe.epochs + 1):  # counted from 1, as mdistiller does
        schedule.set(epoch - 1, 0)
        rates[epoch] = wrapper.optimizer.param_groups[0]["lr"]
    for epoch, rate in rates.items():
        assert rate == pytest.approx(0.05 * 0.1 ** sum(epoch > stage for stage in (150, 180, 210)))
    assert wrapper.optimizer.param_groups[0]["nesterov"] is False


def test_presets_are_those_for_32_px_and_leave_no_other_trace() -> None:
    cells = {cell.method: cell for cell in plan(methods=("dkd", "dist"), pairs=("resnet-l--vit-s",)).cells}
    assert cells["dkd"].hyperparameters["beta"] == 8.0
    assert cells["dist"].hyperparameters["dist_weight"] == 2.0
    plain = {"dataset": {"presets": None}}
    other = plan(plain, methods=("dkd",), pairs=("resnet-l--vit-s",)).cells[0]
    assert other.hyperparameters["beta"] == 2.0
    same = [plan(change, methods=("ofa",), pairs=("resnet-l--vit-s",)).cells[0] for change in (plain, None)]
    assert same[0].hash == same[1].hash


def one(changes: dict[str, Any] | None = None, protocol: str = "paper", **choice: Any) -> Any:
    return plan(changes, protocol=protocol, methods=("kd",), pairs=("swin-l--mixer-s",), seeds=(0,), **choice).cells[0]


def test_limits_of_a_protocol_are_part_of_what_they_limit() -> None:
    plain = one()

    def limited(**limits: int) -> Any:
        return one({"protocols": {"paper": limits}})

    students = limited(images_per_class=5)
    assert students.hash != plain.hash
    assert students.teacher.hash == plain.teacher.hash
    assert students.config["dataset"]["images_per_class"] == 5
    teachers = limited(teacher_images_per_class=5)
    assert teachers.teacher.hash != plain.teacher.hash
    assert teachers.hash != plain.hash  # through the teacher
    measured = limited(measured_images_per_class=5)
    assert measured.hash != plain.hash
    assert measured.teacher.hash != plain.teacher.hash
    assert one({"dataset": {"images_per_class": 5}}).hash == students.hash


def test_protocols_own_limit_goes_before_that_of_the_suite() -> None:
    changes = {"dataset": {"images_per_class": 9}, "protocols": {"paper": {"images_per_class": 5}}}
    made = plan(changes, protocol="paper").under
    assert (made.images_per_class, made.teacher_images_per_class, made.measured_images_per_class) == (5, None, None)
    assert plan({"dataset": {"images_per_class": 9}}, protocol="paper").under.images_per_class == 9


def test_teachers_for_the_validation_split_are_others_where_its_images_are_training_images() -> None:
    test, validation = one(), one(split="validation")
    assert test.teacher.hash != validation.teacher.hash
    assert (test.teacher.split, validation.teacher.split) == ("test", "validation")
    digits = [
        make_plan(load_suite("digits"), Request(split=split), catalog()).teachers[0] for split in ("test", "validation")
    ]
    assert digits[0].hash == digits[1].hash
    assert digits[1].split == "test"


def test_more_images_than_a_split_leaves_are_refused() -> None:
    changes = {"protocols": {"paper": {"teacher_images_per_class": 451}}}
    one(changes)
    with pytest.raises(
        KdbenchError, match=r"protocols\.paper\.teacher_images_per_class = 451, but .* cifar100 has 450"
    ):
        one(changes, split="validation")


def test_nets_with_a_recipe_of_their_own_are_trained_by_it() -> None:
    cell = plan(pairs=("resmlp-l--convnext-s",), methods=("kd",)).cells[0]
    assert (cell.recipe_name, cell.student_net.family) == ("token", "cnn")
    with pytest.raises(ValueError, match="unknown recipe 'tokens'"):
        plan({"net_recipe": {"resnet-s": "tokens"}})
    with pytest.raises(ValueError, match="unknown net 'resnet-m'"):
        plan({"net_recipe": {"resnet-m": "token"}})


# The real files


@pytest.fixture(scope="module")
def real() -> Dataset:
    if not os.environ.get("KDBENCH_DATA"):
        pytest.skip("KDBENCH_DATA is not set")
    return load_dataset("cifar100", Path(os.environ["KDBENCH_DATA"]))


@pytest.mark.data
def test_real_files_hold_what_is_known_of_them(real: Dataset) -> None:
    assert real.checksum() == "e951d43f9280e543381ffcd5665d3ab1adfd644acc8466919eae9019d7c34dd9"
    assert real.train.labels.bincount().tolist() == [500] * 100
    assert real.test.labels.bincount().tolist() == [100] * 100
    assert real.class_names is not None
    assert real.coarse_names is not None
    assert real.coarse is not None
    assert real.coarse_names[real.coarse[real.class_names.index("apple")]] == "fruit_and_vegetables"
    mean = real.train.images.double().mean((0, 2, 3)) / 255
    assert mean.numpy() == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)  # as published
    held_out = real.for_split("validation")
    assert (len(held_out.train), len(held_out.validation)) == (45_000, 5_000)
    assert held_out.validation.labels.bincount().tolist() == [50] * 100
