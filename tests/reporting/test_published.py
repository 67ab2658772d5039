"""Published figures and the ledger against ours."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.reporting import figures as module
from kdbench.reporting.figures import (
    COLUMNS,
    find_published,
    load_published,
    normalise_method,
    normalise_net,
)
from kdbench.reporting.published import published_ledger
from kdbench.reporting.text.render import WRITERS, render
from kdbench.suite.suite import load_suite
from tests.reporting import factory

P1 = "swin_tiny--resnet18"


def folder_with(tmp_path: Path, *rows: dict[str, object]) -> Path:
    blank = dict.fromkeys(COLUMNS, "") | {
        "paper": "Paper",
        "table": "Table 1",
        "dataset": "CIFAR-100",
        "source": "file",
    }
    blank |= {"teacher": "Swin-T", "student": "ResNet18", "evidence": "primary"}
    pd.DataFrame([{**blank, **row} for row in rows]).to_csv(tmp_path / "one.csv", index=False)
    return tmp_path


def ours() -> pd.DataFrame:
    return factory.small().assign(dataset="cifar100")


def ledger(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(render(published_ledger(frame, folder), "csv")))


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("Swin-T", "swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224.ms_in1k", "swin_tiny"), None),
        (("ResNet18", "resnet18.tv_in1k", "ResNet-18"), "resnet18"),
        (("ResNet50", "ResNet-50"), "resnet50"),
        (("MobileNetV2", "mobilenetv2_100.ra_in1k", "MobileNetV2 (timm mobilenetv2_100)"), "mobilenetv2_100"),
        (("DeiT-T", "DeiT-Ti", "DeiT-Tiny", "deit_tiny_patch16_224.fb_in1k"), "deit_tiny_patch16_224"),
        (("ViT-S", "ViT-S/16 (timm augreg)", "vit_small_patch16_224"), "vit_small_patch16_224"),
        (("ResMLP-S12", "resmlp_12_224"), "resmlp_12_224"),
        (("Mixer-B/16", "mixer_b16_224.goog_in21k_ft_in1k"), "mixer_b16_224"),
        (("ConvNeXt-T", "ConvNext-T", "convnext_tiny.fb_in1k"), "convnext_tiny"),
        (("Swin-N", "swin_nano"), "swin_nano"),
    ],
)
def test_names_of_one_net_have_one_key(names, key):
    assert len({normalise_net(name) for name in names}) == 1
    assert key is None or normalise_net(names[0]) == key


def test_nets_of_other_sizes_keep_their_own_keys():
    names = [
        "Swin-T",
        "Swin-N",
        "Swin-P",
        "Swin-L",
        "ResNet18",
        "ResNet34",
        "ResNet32px-S",
        "DeiT-T",
        "DeiT-S",
        "T2T-ViT-7",
    ]
    assert len({normalise_net(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("KD", "kd"), ("OFA", "ofa"), ("OFA-KD", "ofa"), ("FitNet", "fitnet-kd"), ("CRD", "crd"), ("PAT", "fofa"),
        ("FBT", "tas"), ("RSD", "rsd"), ("from scratch", "scratch"), ("teacher", "teacher"),
        ("released checkpoint resnet18 (no distillation)", "teacher"),
    ],
)  # fmt: skip
def test_methods_are_found_by_the_names_of_papers(name, key):
    assert normalise_method(name) == key


@pytest.mark.parametrize(
    "name", ["OFA (logit loss only)", "RSD on logits", "RSD-corr only", "KD+LSKD", "ScaleKD (300 epochs)"]
)
def test_variants_are_not_taken_for_the_method(name):
    assert normalise_method(name) not in {"ofa", "rsd", "kd", "scalekd"}


def test_every_published_row_of_the_project_is_read_and_has_its_source():
    folder = find_published()
    assert folder is not None
    rows = load_published()
    assert len(rows) == sum(len(pd.read_csv(path)) for path in folder.glob("*.csv"))
    assert len(rows) > 2144
    assert rows["top1"].between(1, 100).all()
    assert (rows["source"] != "").all()
    assert set(rows["evidence"]) <= {"primary", "quoted", "secondary"}
    tasks = set(zip(rows["dataset_key"], rows["image_size"], strict=True))
    assert tasks == {("cifar100", 224), ("cifar100", 32), ("imagenet1k", 224)}


def test_the_ledger_sets_ours_beside_the_published_figure(tmp_path):
    folder = folder_with(tmp_path, {"method": "OFA", "top1": 80.54}, {"method": "KD", "top1": 78.74})
    rows = ledger(ours(), folder).set_index("method")
    assert (rows.loc["ofa", "published_top1"], rows.loc["ofa", "ours_top1"], rows.loc["ofa", "n"]) == (80.54, 87.0, 2)
    assert rows.loc["ofa", "difference"] == pytest.approx(6.46)
    assert rows.loc["ofa", "sd"] == pytest.approx(np.sqrt(2))
    assert list(rows.index) == ["kd", "ofa"]


def test_one_figure_in_several_papers_is_one_row_with_the_best_evidence_first(tmp_path):
    folder = folder_with(
        tmp_path,
        {"method": "OFA", "top1": 80.54, "paper": "Later", "evidence": "secondary"},
        {"method": "OFA", "top1": 80.54, "paper": "First", "evidence": "quoted"},
    )
    (row,) = ledger(ours(), folder).to_dict("records")
    assert (row["published_top1"], row["published_low"], row["published_high"]) == (80.54, 80.54, 80.54)
    assert row["evidence"] == "quoted; secondary"
    assert row["paper"] == "First, Table 1; Later, Table 1"


@pytest.mark.parametrize(("high", "difference"), [(81.0, 6.0), (87.5, 0.0), (88.0, 0.0)])
def test_conflicting_claims_are_a_range_and_a_figure_within_differs_by_nothing(tmp_path, high, difference):
    folder = folder_with(
        tmp_path, {"method": "OFA", "top1": 80.54, "evidence": "quoted"}, {"method": "OFA", "top1": high}
    )
    (row,) = ledger(ours(), folder).to_dict("records")
    assert (row["published_top1"], row["published_low"], row["published_high"]) == (high, 80.54, high)
    assert row["difference"] == pytest.approx(difference)
    assert f"80.54 to {high:.2f}" in render(published_ledger(ours(), folder), "text")


def test_last_is_set_beside_last_and_best_beside_best(tmp_path):
    folder = folder_with(
        tmp_path,
        {"method": "OFA", "top1": 80.0, "selection": "last epoch (train.py)"},
        {"method": "OFA", "top1": 80.3, "selection": "best epoch"},
        {"method": "OFA", "top1": 80.2, "selection": "not stated"},
        {"method": "KD", "top1": 79.0, "selection": "best epoch"},
        {"method": "DKD", "top1": 78.0, "selection": "not stated (the code tracks the best)"},
    )
    for select, wanted in (("last", {"ofa": 80.0, "dkd": 78.0}), ("best", {"ofa": 80.3, "kd": 79.0, "dkd": 78.0})):
        records = published_ledger(ours(), folder, select).records.set_index("method")
        assert records["published_top1"].to_dict() == wanted
        assert records.loc["ofa", "ours_top1"] == (87.0 if select == "last" else 87.5)
        assert records["epoch"].to_dict() == {name: "" if name == "dkd" else select for name in wanted}


def test_origins_go_before_logs_and_both_before_copies(tmp_path):
    figures = {"copied": 80.0, "log": 81.0, "rerun": 82.0, "own": 83.0, "unclear": 84.0}
    left = list(figures)
    for gone, wanted in (((), (82.0, 83.0)), (("own", "rerun"), (81.0, 81.0)), (("log",), (80.0, 84.0))):
        left = [name for name in left if name not in gone]
        folder = folder_with(tmp_path, *({"method": "KD", "top1": figures[name], "provenance": name} for name in left))
        (row,) = ledger(ours(), folder).to_dict("records")
        assert (row["published_low"], row["published_high"]) == wanted


def test_figures_at_another_image_size_are_another_task(tmp_path):
    folder = folder_with(tmp_path, {"method": "KD", "top1": 70.0, "image_size": "32"})
    for size in (224, None):  # None: not known
        frame = ours().assign(image_size=size)
        assert published_ledger(frame, folder).message.startswith("No published figure is known")
    assert len(ledger(ours().assign(image_size=32), folder)) == 1


def test_the_files_of_the_classic_pairs_hold_every_figure_as_it_was_read():
    folder = find_published()
    assert folder is not None
    rows = {name: pd.read_csv(folder / f"{name}.csv", dtype=str) for name in ("classic_cifar100", "imagenet_r34_r18")}
    assert {name: len(table) for name, table in rows.items()} == {"classic_cifar100": 1953, "imagenet_r34_r18": 191}
    assert len(pd.read_csv(folder / "conflicts" / "classic.csv")) == 154
    both = pd.concat(rows.values())
    assert both["repo"].nunique() == 37
    for name in ("repo", "provenance", "source", "evidence"):
        assert both[name].notna().all(), name
    cifar = rows["classic_cifar100"].set_index(["repo", "teacher", "student", "method"])
    for key, wanted in (
        (("HobbitLong/RepDistiller", "wrn_40_2", "wrn_16_2", "KD"), ("74.92", "80", "last epoch", "rerun")),
        (("HobbitLong/RepDistiller", "wrn_40_2", "wrn_16_2", "CRD"), ("75.48", "92", "last epoch", "own")),
        (("megvii-research/mdistiller", "resnet32x4", "ShuffleV2", "DKD"), ("77.07", "61", "best epoch", "own")),
    ):
        found = cifar.loc[[key]].iloc[0]
        assert (found["top1"], found["line"], found["selection"], found["provenance"]) == wanted
    assert set(both["image_size"]) == {"32", "224"}


@pytest.mark.parametrize(
    "change", [{"dataset": "ImageNet-1K"}, {"teacher": "ViT-S"}, {"student": "DeiT-T"}, {"method": "X"}]
)
def test_other_data_sets_nets_and_methods_do_not_match(tmp_path, change):
    folder = folder_with(tmp_path, {"method": "OFA", "top1": 80.54, **change})
    table = published_ledger(ours(), folder)
    assert table.message.startswith("No published figure is known")


def test_teachers_and_students_from_scratch_are_compared_too(tmp_path):
    folder = folder_with(
        tmp_path,
        {"method": "from scratch", "teacher": "", "top1": 74.01},
        {"method": "teacher", "student": "", "top1": 89.26},
        {
            "method": "released teacher checkpoint (no distillation)",
            "teacher": "",
            "student": "ConvNeXt-T",
            "top1": 88.42,
        },
    )
    rows = ledger(ours(), folder).set_index(["kind", "published_top1"])
    assert rows["ours_top1"].to_dict() == {("teacher", 88.42): 95.0, ("teacher", 89.26): 95.0, ("scratch", 74.01): 81.0}


def test_a_student_from_scratch_is_one_figure_for_all_its_teachers(tmp_path):
    frame = factory.frame({P1: {"scratch": [80.0, 82.0]}, "vit_small--resnet18": {"scratch": [80.0, 82.0]}})
    folder = folder_with(tmp_path, {"method": "from scratch", "teacher": "", "top1": 74.01})
    row = ledger(frame.assign(dataset="cifar100"), folder).iloc[0]
    assert (row["ours_top1"], row["n"]) == (81.0, 2)
    assert row["sd"] == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("format", ["markdown", "text", "html", "latex"])
def test_a_reconstruction_is_named_so_and_never_a_reproduction(tmp_path, format):
    folder = folder_with(tmp_path, {"method": "FBT", "top1": 81.61})
    text = " ".join(render(published_ledger(ours(), folder), format).split())
    assert "(rec.)" in text
    assert "ours is a reconstruction of the method: not a reproduction" in text
    for start in (m.start() for m in re.finditer("reproduction", text)):
        assert re.search(r"\b(not? a|no test of)\W+$", text[:start])


def test_what_is_not_run_or_failed_keeps_its_row_without_a_figure(tmp_path):
    folder = folder_with(tmp_path, {"method": "CRD", "top1": 77.63}, {"method": "FitNet", "top1": 78.87})
    extra = [factory.cell(P1, "crd", state="failed"), factory.cell(P1, "fitnet-kd")]
    rows = ledger(pd.concat([ours(), pd.DataFrame(extra).assign(dataset="cifar100")]), folder).set_index("method")
    assert rows["ours_top1"].isna().all()
    assert rows["difference"].isna().all()
    assert rows["note"].to_dict() == {"crd": "failed", "fitnet-kd": "not run yet"}


def test_hints_without_kd_are_not_set_beside_the_fitnet_of_the_papers(tmp_path):
    folder = folder_with(tmp_path, {"method": "FitNet", "top1": 78.87})
    rows = pd.DataFrame([factory.cell(P1, name, top1=70.0) for name in ("fitnet", "fitnet-kd")]).assign(
        dataset="cifar100"
    )
    assert set(ledger(rows, folder)["method"]) == {"fitnet-kd"}


def test_a_protocol_that_is_not_the_papers_is_said(tmp_path):
    folder = folder_with(tmp_path, {"method": "KD", "top1": 78.74})
    assert "protocol 'short', not as published" in render(published_ledger(ours(), folder), "text")
    paper = published_ledger(ours().assign(protocol="paper"), folder)
    assert "not as published" not in render(paper, "text")


@pytest.mark.parametrize("format", WRITERS)
def test_an_installation_without_the_folder_says_so_in_one_line(monkeypatch, format):
    monkeypatch.setattr(module, "find_published", lambda: None)
    assert load_published().empty
    table = published_ledger(ours())
    assert table.message.startswith("No published figures to compare with")
    text = render(table, format)
    if format != "csv":
        assert sum("No published figures" in line for line in text.splitlines()) == 1


def test_wrong_folders_and_files_are_refused(tmp_path):
    with pytest.raises(KdbenchError, match="no folder"):
        load_published(tmp_path / "nothing")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(KdbenchError, match=r"bad\.csv lacks the columns paper"):
        load_published(tmp_path)
    (tmp_path / "bad.csv").unlink()
    for name, value in (("top1", "780"), ("teacher_top1", "-1"), ("image_size", "abc"), ("student_top1", "n/a")):
        folder = folder_with(tmp_path, {"method": "KD", "top1": 78.74}, {"method": "DKD", "top1": 79.0} | {name: value})
        with pytest.raises(KdbenchError, match=f"line 3: {name} is '{value}', expected a number from 0 to"):
            load_published(folder)


@pytest.mark.parametrize("format", WRITERS)
def test_an_empty_store_and_every_format_work(tmp_path, format):
    folder = folder_with(tmp_path, {"method": "KD", "top1": 78.74, "source": "50% a_b | <c> $d"})
    assert render(published_ledger(ours(), folder), format)
    assert render(published_ledger(pd.DataFrame(), folder), format)


#: How the suites ``cifar100`` and ``imagenet1k`` call their nets, with the names that tables print.
FIELD = {
    "swin_tiny": ("Swin-T", "vit"), "vit_small": ("ViT-S", "vit"), "mixer_b16": ("Mixer-B/16", "mlp"),
    "convnext_tiny": ("ConvNeXt-T", "cnn"), "resnet18": ("ResNet18", "cnn"), "mobilenetv2": ("MobileNetV2", "cnn"),
    "deit_tiny": ("DeiT-T", "vit"), "swin_pico": ("Swin-P", "vit"), "swin_nano": ("Swin-N", "vit"),
    "resmlp_s12": ("ResMLP-S12", "mlp"), "resnet50": ("ResNet50", "cnn"),
}  # fmt: skip


def field_frame(dataset: str, pairs: list[str], methods: list[str], **changes: object) -> pd.DataFrame:
    rows = []
    for pair in pairs:
        teacher, student = pair.split("--")
        names = {"teacher_display": FIELD[teacher][0], "student_display": FIELD[student][0]}
        names |= {"teacher_family": FIELD[teacher][1], "student_family": FIELD[student][1]}
        for method in methods:
            rows.append(
                factory.cell(pair, method, 75.0, suite=dataset, dataset=dataset, protocol="paper", **names, **changes)
            )
    return pd.DataFrame(rows)


CIFAR_PAIRS = [
    *("swin_tiny--resnet18", "vit_small--resnet18", "mixer_b16--resnet18", "swin_tiny--mobilenetv2"),
    *("vit_small--mobilenetv2", "mixer_b16--mobilenetv2", "convnext_tiny--deit_tiny", "mixer_b16--deit_tiny"),
    *("convnext_tiny--swin_pico", "mixer_b16--swin_pico", "convnext_tiny--resmlp_s12", "swin_tiny--resmlp_s12"),
]


def test_the_suites_pairs_find_every_published_figure_of_their_nets() -> None:
    """Nothing is lost to a spelling: what is joined is what the files hold for these nets and methods, by their own names."""
    methods = ["scratch", "kd", "fitnet", "crd", "dkd", "dist", "ofa", "fofa", "tas", "rsd"]
    published = load_published()
    for dataset in ("cifar100", "imagenet1k"):
        pairs = [*CIFAR_PAIRS, "resnet50--swin_nano", "swin_nano--resnet50", "convnext_tiny--swin_nano"]
        rows = ledger_of(field_frame(dataset, pairs, methods))
        raw = published[
            (published["dataset_key"] == dataset)
            & (published["image_size"] == 224)
            & published["method_key"].isin(methods)
        ]
        for pair in pairs:
            teacher, student = (FIELD[name][0] for name in pair.split("--"))
            bare = (
                raw["teacher"].str.replace(r" *\(.*", "", regex=True),
                raw["student"].str.replace(r" *\(.*", "", regex=True),
            )
            expected = raw[(bare[0] == teacher) & (bare[1] == student) & (raw["method_key"] != "scratch")]
            ours_ = rows[(rows["teacher"] + "--" + rows["student"] == pair) & (rows["kind"] == "distilled")]
            claimed = ours_.set_index("method")
            for method, top1 in zip(expected["method_key"], expected["top1"], strict=True):
                assert claimed.loc[method, "published_low"] <= top1 <= claimed.loc[method, "published_high"], pair
    assert len(ledger_of(field_frame("cifar100", CIFAR_PAIRS, methods))) >= 40


def ledger_of(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(render(published_ledger(frame), "csv")))


def test_known_published_figures_stand_beside_ours_for_the_suites_names() -> None:
    rows = ledger_of(field_frame("cifar100", ["swin_tiny--resnet18", "mixer_b16--deit_tiny"], ["scratch", "kd", "ofa"]))
    found = set(
        zip(
            rows["kind"],
            rows["teacher"].fillna(""),
            rows["student"].fillna(""),
            rows["method"],
            rows["published_top1"],
            strict=True,
        )
    )
    for wanted in (
        ("scratch", "", "resnet18", "scratch", 74.01), ("distilled", "swin_tiny", "resnet18", "kd", 78.74),
        ("distilled", "swin_tiny", "resnet18", "ofa", 80.54), ("teacher", "swin_tiny", "", "teacher", 89.26),
    ):  # fmt: skip
        assert wanted in found
    image = ledger_of(field_frame("imagenet1k", ["convnext_tiny--deit_tiny"], ["ofa"]))
    assert set(image.loc[image["kind"] == "distilled", "published_top1"]) == {74.41}
    assert (rows["source"] != "").all()


def test_the_32_px_suite_is_never_joined() -> None:
    """Its nets have short names of their own, ``vit-s`` among them; figures published for 224 px are no match."""
    cells = make_plan(
        load_suite("cifar100-32"), Request(methods=("scratch", "kd", "ofa"), pairs=("*",)), catalog()
    ).cells
    rows = [
        factory.cell(cell.pair, cell.method, 70.0, suite="cifar100-32", dataset="cifar100", **cell.facts)
        for cell in cells
    ]
    assert "vit-s" in {cell.student for cell in cells}
    assert published_ledger(pd.DataFrame(rows)).message.startswith("No published figure is known")


def test_epochs_that_differ_are_said_where_the_published_ones_are_known() -> None:
    few = ledger_of(field_frame("cifar100", ["swin_tiny--resnet18"], ["kd", "ofa", "fofa"], epochs=40))
    notes = few.set_index(["method", "published_top1"])["note"]
    assert "40 epochs, published 300" in notes["ofa", 80.54]
    assert "published with averaged weights" in str(notes["fofa"].iloc[0])
    same = ledger_of(field_frame("cifar100", ["swin_tiny--resnet18"], ["ofa"], epochs=300))
    assert not same["note"].astype(str).str.contains("epochs").any()
    image = ledger_of(field_frame("imagenet1k", ["swin_tiny--resnet18"], ["ofa"], epochs=300))
    assert image.loc[image["kind"] == "distilled", "note"].str.contains("300 epochs, published 100").any()


def classic(select: str, *methods: str) -> pd.DataFrame:
    """The ledger of the classic suite, by pair and method, with 75 % for everything."""
    suite = load_suite("cifar100-classic")
    request = Request(protocol="paper", methods=methods, pairs=("*",), seeds=(0,))
    rows = [
        factory.cell(
            cell.pair, cell.method, 75.0, suite="cifar100-classic", dataset="cifar100", image_size=32, **cell.facts
        )
        for cell in make_plan(suite, request, catalog()).cells
    ]
    return published_ledger(pd.DataFrame(rows), select=select).records


def test_the_classic_suite_stands_beside_repdistillers_last_epochs_and_mdistillers_best() -> None:
    records = classic("last", "scratch", "kd", "fitnet", "fitnet-kd", "at", "crd")
    last = records.set_index(["kind", "teacher", "student", "method"])
    for key, wanted in (
        (("distilled", "wrn_40_2", "wrn_16_2", "kd"), 74.92),
        (("distilled", "wrn_40_2", "wrn_16_2", "fitnet"), 73.58),
        (("distilled", "ResNet50", "MobileNetV2", "at"), 58.58),
        (("distilled", "vgg13", "vgg8", "crd"), 73.94),
    ):
        row = last.loc[key]
        assert (row["published_low"], row["published_high"], row["epoch"]) == (wanted, wanted, "last")
        assert "HobbitLong/RepDistiller" in row["source"]
    assert "fitnet-kd" not in set(records["method"])
    assert len(records[records["method"] == "kd"]) == 13
    best = classic("best", "dkd").set_index(["kind", "teacher", "student"])
    assert best.loc[("distilled", "resnet32x4", "resnet8x4"), "published_top1"] == 76.32
    assert (best["epoch"] != "last").all()


def test_a_log_of_the_epoch_asked_for_goes_before_a_figure_whose_epoch_nobody_knows(tmp_path):
    log = {"method": "KD", "top1": 79.0, "provenance": "log", "selection": "last epoch"}
    unknown = {"method": "KD", "top1": 80.0, "provenance": "rerun", "selection": "not stated"}
    copied = {"method": "KD", "top1": 81.0, "provenance": "copied", "selection": "last epoch (copied)"}
    for rows, wanted in (((log, unknown, copied), 79.0), ((unknown, copied), 80.0), ((copied,), 81.0)):
        (row,) = ledger(ours(), folder_with(tmp_path, *rows)).to_dict("records")
        assert row["published_top1"] == wanted


def test_another_teacher_and_what_sources_remark_are_said(tmp_path):
    frame = ours().assign(teacher_top1=76.0)
    for teacher, said in ((76.4, False), (76.6, True), ("", False)):
        folder = folder_with(tmp_path, {"method": "KD", "top1": 79.0, "teacher_top1": teacher, "note": "with mixup"})
        (row,) = ledger(frame, folder).to_dict("records")
        assert ("our teacher 76.00, published 76.60" in str(row["note"])) == said
        assert row["source"] == "file (with mixup)"


def test_published_figures_are_shown_without_any_run(kdbench, tmp_path):
    choice = ("--pairs", "vgg13--*", "--methods", "kd,dkd", "--format", "csv")
    for protocol, kd in (("paper", {"vgg8": 72.98, "MobileNetV2": 67.37}), ("as-released", {})):
        said = kdbench(
            "table",
            "cifar100-classic",
            "--against-published",
            "--protocol",
            protocol,
            "--out",
            tmp_path / "none",
            *choice,
        )
        assert said.status == 0
        rows = pd.read_csv(io.StringIO(said.out))
        assert set(rows["state"]) == {"planned"}
        found = rows[rows["method"] == "kd"].set_index("student")["published_top1"].to_dict()
        assert kd.items() <= found.items()
        assert rows.loc[rows["method"] == "dkd", "epoch"].isin(["best"]).any() == (protocol == "as-released")
