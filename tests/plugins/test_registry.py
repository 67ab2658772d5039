"""How methods are found: read from their source, checked, imported only when they are built."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import HyperparameterError, KdbenchError, UnknownNameError
from kdbench.hyperparameters import Hyperparameter, Range
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.entry import METHODS, MethodEntry, register_method
from kdbench.plugins.registry import catalog
from kdbench.plugins.source import _ATTRIBUTES, read_source
from kdbench.suite.suite import load_suite
from kdbench.userfiles import PluginError
from tests.conftest import PLUGIN

pytestmark = pytest.mark.usefixtures("forget_plugins")

BUILTIN = sorted(catalog())


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    yield
    for name in [name for name, cls in METHODS.items() if not cls.__module__.startswith("kdbench.methods.")]:
        sys.modules.pop(METHODS.pop(name).__module__, None)


def entry(name: str = "kd") -> MethodEntry:
    return catalog().find(name)


def test_no_built_in_method_is_left_out_and_none_is_broken() -> None:
    found = catalog()
    assert {"scratch", "kd", "fitnet", "crd", "ofa", "lfcc"} <= set(found)
    assert not found.errors
    assert all(item.builtin for item in found.values())


@pytest.mark.parametrize("name", BUILTIN)
def test_reading_the_source_tells_what_the_class_says(name: str) -> None:
    found = entry(name)
    cls: Any = found.load()
    assert cls.__name__ == found.class_name
    assert cls.name == name
    for attribute in _ATTRIBUTES:
        read, real = getattr(found, attribute), getattr(cls, attribute)
        assert read == (frozenset(real) if attribute == "needs" else real), attribute
    real_arguments = {
        argument.name: argument.default
        for argument in inspect.signature(cls).parameters.values()
        if argument.kind is argument.KEYWORD_ONLY
    }
    read_arguments = {argument.name: argument.default for argument in found.hyperparameters.values()}
    assert read_arguments == real_arguments
    assert [type(value) for value in read_arguments.values()] == [type(value) for value in real_arguments.values()]
    assert found.paper == (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


@pytest.mark.parametrize("name", BUILTIN)
def test_defaults_and_presets_fit_their_own_annotations(name: str) -> None:
    found = entry(name)
    for dataset in ("digits", "cifar100", "imagenet1k", *found.presets):
        found.resolve(dataset, {key: argument.default for key, argument in found.hyperparameters.items()})


def test_hyperparameters_come_from_defaults_then_preset_then_suite_then_user(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin(before="")
    path.write_text(
        path.read_text().replace('    """A plugin', '    presets = {"digits": {"weight": 2.0}}\n    """A plugin')
    )
    found = catalog([str(path)]).find("mine")
    assert found.resolve("cifar100") == {"weight": 1.0}
    assert found.resolve("digits") == {"weight": 2.0}
    assert found.resolve("digits", {"weight": 3}) == {"weight": 3.0}
    assert found.resolve("digits", {"weight": 3}, {"weight": 4}) == {"weight": 4.0}
    assert isinstance(found.resolve("digits", {"weight": 3})["weight"], float)


def test_method_that_carries_what_kd_does_not_have_is_refused(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin(before="")
    path.write_text(path.read_text().replace('    """A', '    carries_kd = {"temprature": "weight"}\n    """A'))
    with pytest.raises(HyperparameterError, match=r"mine\.carries_kd: .*did you mean 'temperature'"):
        catalog([str(path)])["mine"].trace("digits", kd=entry().resolve("digits"))


def test_unknown_hyperparameter_is_refused_with_the_nearest() -> None:
    with pytest.raises(HyperparameterError, match=r"kd\.temprature; did you mean 'temperature'"):
        entry().resolve("digits", {"temprature": 4})
    with pytest.raises(HyperparameterError, match="scratch has none"):
        entry("scratch").resolve("digits", {"temperature": 4})


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("float", 1, 1.0),
        ("float", 0.5, 0.5),
        ("int", 3, 3),
        ("bool", True, True),
        ("str", "a", "a"),
        ("float | None", None, None),
        ("float | None", 2, 2.0),
        ("Optional[int]", None, None),
        ("tuple[int, ...]", [1, 2], (1, 2)),
        ("tuple[float, ...]", [1, 2.5], (1.0, 2.5)),
        ("tuple[float, float]", (1, 2), (1.0, 2.0)),
        ("tuple[int, ...]", [], ()),
        ("list[str]", ["a"], ("a",)),
        ("tuple", [1, "a"], (1, "a")),
        ("Literal['a', 'b']", "b", "b"),
    ],
)
def test_value_of_the_annotated_type_is_taken(annotation: str, value: Any, expected: Any) -> None:
    got = Hyperparameter("x", None, annotation).check(value, "m")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("float", "hot"),
        ("float", True),
        ("float", None),
        ("float", [1.0]),
        ("int", 1.5),
        ("int", True),
        ("int", "1"),
        ("bool", 1),
        ("bool", "true"),
        ("str", 1),
        ("float | None", "x"),
        ("tuple[int, ...]", 1),
        ("tuple[int, ...]", [1, "a"]),
        ("tuple[int, ...]", [1.5]),
        ("tuple[float, float]", [1.0]),
        ("tuple[int, ...]", "12"),
        ("Literal['a', 'b']", "c"),
    ],
)
def test_value_of_another_type_is_refused_with_both_types(annotation: str, value: Any) -> None:
    with pytest.raises(HyperparameterError) as caught:
        Hyperparameter("x", None, annotation).check(value, "m")
    assert str(caught.value).startswith("m.x = ")
    assert annotation in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("kd.temperature", 0.0, "kd.temperature = 0.0: must be above 0"),
        ("kd.kd_weight", -1.0, "must be 0 or more"),
        ("kd.kd_weight", float("nan"), "must be 0 or more, and finite"),
        ("kd.kd_weight", float("inf"), "must be 0 or more, and finite"),
        ("crd.momentum", 1.5, r"must be in \[0, 1\]"),
        ("mgd.mask_ratio", 1.0, "must be 0 or more and below 1"),
        ("mlld.temperatures", (4.0, 0.0), "must be above 0"),
        ("ofa.eps", (1.0, 1.0, 1.0, 1.0, 0.0), "must be above 0"),
        ("lfcc.kernel", 4, "expected Literal"),
        ("at.stages", (0,), r"must be in \[1, 4\]"),
    ],
)
def test_value_out_of_range_is_refused_in_a_plan_and_in_python(name: str, value: Any, words: str) -> None:
    method, _, key = name.partition(".")
    with pytest.raises(HyperparameterError, match=words):
        entry(method).resolve("digits", {key: value})
    cls: Any = entry(method).load()
    with pytest.raises(HyperparameterError, match=words):
        cls(None, None, None, **{key: value})


@pytest.mark.parametrize("name", BUILTIN)
def test_every_number_has_a_range_and_is_searched_inside_it(name: str) -> None:
    for parameter in entry(name).hyperparameters.values():
        if isinstance(parameter.default, bool) or "Literal" in parameter.annotation:
            continue
        bounds = parameter.range
        assert bounds is not None, parameter.name
        assert bounds != Range(), parameter.name
        for number in bounds.search or ():
            assert number in bounds, parameter.name


RANGED = "weight: Annotated[float, Range({})] = {}"


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
@pytest.mark.parametrize("default", ["1.0", "1.0 / 4"])
def test_range_is_read_from_the_source_and_from_the_class_alike(
    write_plugin: Callable[..., Path], future: str, default: str
) -> None:
    path = write_plugin("ranged", before="from typing import Annotated\nfrom kdbench import Range")
    path.write_text(future + path.read_text().replace("weight: float = 1.0", RANGED.format("at_least=0", default)))
    found = catalog([str(path)])["ranged"]
    assert found.hyperparameters["weight"].annotation == "float"
    assert found.hyperparameters["weight"].range == Range(at_least=0)
    cls: Any = found.load()
    with pytest.raises(HyperparameterError, match=r"ranged.weight = -1: must be 0 or more"):
        cls(None, None, None, weight=-1)
    assert isinstance(cls(None, None, None, weight=2).weight, float)


@pytest.mark.parametrize("bounds", ["0", "at_least=LOW", "atleast=0"])
def test_range_that_is_no_literal_is_reported(write_plugin: Callable[..., Path], bounds: str) -> None:
    path = write_plugin("ranged", before="from typing import Annotated\nfrom kdbench import Range\nLOW = 0")
    text = path.read_text().replace("weight: float = 1.0", RANGED.format(bounds, 1.0))
    path.write_text("from __future__ import annotations\n" + text)
    (error,) = catalog([str(path)]).errors
    assert f"weight: write Range({bounds}) with literals" in str(error)


def test_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fitnet'"):
        catalog().find("fitnets")


# Plugins


def test_plugin_is_read_without_being_imported(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin(before="raise RuntimeError('imported')")
    found = catalog([str(path)])
    assert not found.errors
    assert found["mine"].hyperparameters["weight"].default == 1.0
    assert not found["mine"].builtin
    assert "mine" not in METHODS


def test_plugin_is_imported_once_when_it_is_built(
    write_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = "import os; os.environ['KDBENCH_COUNT'] = os.environ.get('KDBENCH_COUNT', '') + 'x'"
    monkeypatch.setenv("KDBENCH_COUNT", "")
    found = catalog([str(write_plugin("built", before=count))])
    cls = found["built"].load()
    assert found["built"].load() is cls
    assert os.environ["KDBENCH_COUNT"] == "x"


@pytest.mark.parametrize(
    ("before", "problem"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_plugin_that_raises_at_import_is_reported_with_its_own_traceback(
    write_plugin: Callable[..., Path], before: str, problem: str
) -> None:
    path = write_plugin(before=before)
    found = catalog([str(path)])
    with pytest.raises(PluginError, match=problem) as caught:
        found["mine"].load()
    assert str(path) in str(caught.value)
    assert before in caught.value.details
    assert not [module for module in sys.modules.values() if getattr(module, "__file__", None) == str(path)]


def test_plugin_with_a_syntax_error_is_reported_and_the_others_go_on(
    write_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef f(:\n")
    found = catalog([str(broken), str(write_plugin())])
    assert "mine" in found
    assert "kd" in found
    (error,) = found.errors
    assert f"{broken}, line 2" in str(error)
    assert "def f(:" in error.details


def test_a_run_goes_on_without_a_plugin_that_does_not_parse(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    request = Request(protocol="smoke", methods=("kd",), plugins=(str(broken),))
    plan = make_plan(load_suite("digits"), request, catalog(request.plugins))
    assert {cell.method for cell in plan.cells} == {"kd"}
    assert not plan.hooks


def test_a_plugin_imports_the_modules_beside_it_and_they_hide_no_library(
    write_plugin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = write_plugin()
    (path.parent / "beside_mine.py").write_text("import colorsys\n\nRGB = colorsys.hsv_to_rgb(0, 0, 1)\n")
    (path.parent / "colorsys.py").write_text("raise SystemExit('the wrong one')\n")
    path.write_text(
        "from beside_mine import RGB\n" + path.read_text().replace("from __future__ import annotations", "")
    )
    assert catalog([str(path)])["mine"].load() is METHODS["mine"]
    assert sys.modules.pop("beside_mine").RGB == (1, 1, 1)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = 1\0"])
def test_plugin_that_is_no_source_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(content)
    (error,) = catalog([str(path)]).errors
    assert str(path) in str(error)


def test_missing_plugin_and_plugin_without_a_method_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no such file"):
        catalog([str(tmp_path / "nowhere.py")])
    with pytest.raises(PluginError, match="a folder is a plugin if it holds __init__"):
        catalog([str(tmp_path)])
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(PluginError, match="registers no method"):
        catalog([str(empty)])


def test_plugin_may_not_take_the_name_of_another_method(write_plugin: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'kd' is already defined in .*kd.py; choose another name"):
        catalog([str(write_plugin("kd"))])
    first, second = write_plugin("mine"), tmp_path / "second.py"
    second.write_text(first.read_text())
    with pytest.raises(PluginError, match="already defined"):
        catalog([str(first), str(second)])
    assert "mine" in catalog([str(first), str(first)])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"mine"', '"../mine"', "letters, digits"),
        ('"mine"', '"a,b"', "letters, digits"),
        ('"mine"', '"a.b"', "letters, digits"),
        ('"mine"', '""', "letters, digits"),
        ('    """A', '    family = "hints"\n    """A', "unknown family 'hints'; did you mean 'hint'"),
        ('    """A', '    fidelity = "referenz"\n    """A', "did you mean 'reference'"),
        ('    """A', '    version = "2"\n    """A', "version = '2' has the wrong type"),
        ('    """A', '    needs = "stages"\n    """A', "needs = 'stages' has the wrong type"),
        ('    """A', '    presets = {"digits": 1}\n    """A', "presets"),
        ('    """A', '    presets = {"digits:vlt": {}}\n    """A', "no family of students; did you mean 'vit'"),
        ('    """A', '    carries_kd = {"kd_weight": "wait"}\n    """A', "'wait'; did you mean 'weight'"),
    ],
)
def test_plugin_that_declares_nonsense_is_reported(
    write_plugin: Callable[..., Path], old: str, new: str, problem: str
) -> None:
    path = write_plugin("mine")
    path.write_text(path.read_text().replace(old, new))
    (error,) = catalog([str(path)]).errors
    assert str(path) in str(error)
    assert problem in str(error)


def test_declarations_that_are_no_literals_are_taken_from_the_class(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin("computed")
    text = path.read_text().replace("weight: float = 1.0", "weight: float = 1.0 / 4")
    path.write_text(text.replace('    """A', '    version = 1 + 1\n    """A'))
    found = catalog([str(path)]).find("computed")
    assert (found.version, found.hyperparameters["weight"].default) == (2, 0.25)


def test_subclass_in_the_same_file_inherits_what_it_does_not_declare(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin("parent")
    path.write_text(
        path.read_text().replace('    """A', '    family = "hint"\n    needs = {"stages"}\n    """A')
        + '\n\n@register_method("child")\nclass Child(Plugin):\n    """A child."""\n\n    version = 3\n'
    )
    found = catalog([str(path)])
    assert (found["child"].family, found["child"].version, found["parent"].version) == ("hint", 3, 1)
    assert found["child"].needs == {"stages"}
    assert list(found["child"].hyperparameters) == ["weight"]


def test_hyperparameter_without_a_default_is_refused(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin("bare")
    path.write_text(path.read_text().replace("weight: float = 1.0", "weight: float"))
    (error,) = catalog([str(path)]).errors
    assert "bare.weight has no default" in str(error)


def test_source_hash_follows_the_file(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin()
    before = catalog([str(path)])["mine"].source_hash()
    assert catalog([str(path)])["mine"].source_hash() == before
    path.write_text(path.read_text() + "# changed\n")
    assert catalog([str(path)])["mine"].source_hash() != before


def test_registering_one_name_from_two_classes_is_refused() -> None:
    class First:
        pass

    class Second:
        pass

    First.__module__ = Second.__module__ = "kdbench_plugin_twice"
    register_method("twice")(First)
    register_method("twice")(First)
    with pytest.raises(KdbenchError, match="'twice' is registered twice"):
        register_method("twice")(Second)


# Installed packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], dict[str, str]], Path]:
    """Make a distribution of modules (name -> text) with entry points (name -> module)."""

    def make(modules: dict[str, str], points: dict[str, str]) -> Path:
        site = tmp_path / "site"
        info = site / "kdbench_fake-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdbench-fake\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {module}" for name, module in points.items())
        (info / "entry_points.txt").write_text(f"[kdbench.methods]\n{lines}\n")
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(site))
        return site

    return make


def test_installed_package_adds_its_methods_without_being_imported(install: Callable[..., Path]) -> None:
    text = PLUGIN.format(name="installed", before="", loss="batch.task_loss(student.logits)")
    install({"kdbench_fake_good": text}, {"installed": "kdbench_fake_good:Plugin"})
    found = catalog()
    assert found["installed"].module == "kdbench_fake_good"
    assert "kdbench_fake_good" not in sys.modules
    assert found["installed"].load().__module__ == "kdbench_fake_good"


def test_broken_installed_packages_stop_no_other(install: Callable[..., Path]) -> None:
    good = PLUGIN.format(name="installed", before="", loss="batch.task_loss(student.logits)")
    clash = PLUGIN.format(name="kd", before="", loss="batch.task_loss(student.logits)")
    install(
        {"kdbench_fake_a": "def f(:", "kdbench_fake_b": "x = 1", "kdbench_fake_c": clash, "kdbench_fake_d": good},
        {
            "syntax": "kdbench_fake_a",
            "empty": "kdbench_fake_b",
            "clash": "kdbench_fake_c",
            "good": "kdbench_fake_d",
            "gone": "kdbench_fake_nowhere",
            "gone_too": "kdbench_fake_nowhere.inner",
        },
    )
    found = catalog()
    assert "installed" in found
    assert found["kd"].builtin
    told = "\n".join(map(str, found.errors))
    assert len(found.errors) == 5
    for words in (
        "line 1: ",
        "kdbench_fake_b registers no method",
        "already defined",
        "kdbench_fake_nowhere was not found",
        "gone_too",
    ):
        assert words in told


def test_source_that_registers_nothing_gives_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("class A:\n    pass\n")
    assert read_source(path, "x") == []
