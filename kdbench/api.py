"""The verbs of the command line as functions, for scripts and notebooks: ``kdbench.plan``, ``run``, ``tune``, ``table``, ``leaderboard``.

Each takes a suite and, by keyword, what its verb has as options: the fields of ``Request``. The values go through the parser of the
command line, so that both accept and refuse the same. A request that is wrong raises ``KdbenchError``. Progress and notes are printed
as lines. Works without torch until something is planned or trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from kdbench.errors import KdbenchError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.cli.run import Run
    from kdbench.matrix.cells import Plan
    from kdbench.matrix.request import Request
    from kdbench.reporting.grid import Table
    from kdbench.reporting.leaderboard import Leaderboard
    from kdbench.search.trials import Search

#: What describes a variant.
_VARIANT = {"method", "set", "display"}

Names = str | Sequence[str]
File = str | PathLike[str]


class Options(TypedDict, total=False):
    """The fields of ``Request`` but the suite; what each means stands there. One name may stand for a list of one."""

    protocol: str
    methods: Names
    pairs: Names
    seeds: int | Sequence[int]
    split: Literal["test", "validation"]
    limit: int | None
    set: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]
    settings: File | None
    as_tuned: bool
    train_teachers: Names
    fine_tune_teachers: Names
    teacher_tolerance: float
    accept_teacher: bool
    plugins: File | Sequence[File]
    hooks: File | Sequence[File]
    out: File
    data: File | None
    weights: File | None
    download: bool
    on: Literal["local", "slurm", "ray", "inprocess"]
    slurm: str
    workers: int | None
    device: str | None
    memory: float | None
    solo: bool
    compile: bool
    graphs: bool
    cuda_streams: int
    deterministic: bool
    cudnn_benchmark: bool
    loaders: int | None
    log: Names
    confirm: Names
    max_hours: float | None
    stall: float
    retry_failed: bool
    yes: bool


@dataclass(frozen=True, repr=False)
class View:
    """Tables, or leaderboards, one for each protocol and split: usually one. A notebook shows it as HTML.

    Attributes:
        parts: what it shows.
        damaged: ``FILE: reason`` of what could not be read.
    """

    parts: tuple[Table, ...] | tuple[Leaderboard, ...]
    damaged: tuple[str, ...] = ()

    def render(self, format: str = "text") -> str:
        """In ``"text"``, ``"markdown"``, ``"latex"``, ``"csv"``, ``"json"`` or ``"html"``, as ``--format`` of the verbs."""
        from kdbench.reporting.leaderboard import Leaderboard
        from kdbench.reporting.text.leaderboard import render_leaderboard
        from kdbench.reporting.text.render import WRITERS, render

        if format not in WRITERS:
            raise UnknownNameError("format", format, WRITERS)
        texts = (
            render_leaderboard(part, format) if isinstance(part, Leaderboard) else render(part, format)
            for part in self.parts
        )
        return "\n".join(texts)

    @property
    def text(self) -> str:
        """As the verb prints it."""
        return self.render()

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.render("html")

    def to_dataframe(self) -> pd.DataFrame:
        """The figures as plain numbers, a row for each pair and method, or for each method of a leaderboard."""
        import pandas as pd

        from kdbench.reporting.leaderboard import Leaderboard
        from kdbench.reporting.text.leaderboard import leaderboard_table

        tables = (leaderboard_table(part) if isinstance(part, Leaderboard) else part for part in self.parts)
        return pd.concat([table.records for table in tables], ignore_index=True)


def plan(suite: File = "digits", **options: Unpack[Options]) -> Plan:
    """What a run would train: ``cells``, ``skipped`` ones with the reason, and ``cohorts()`` of cells that share a teacher.

    Args:
        suite: a suite, or the path of its YAML file.
        **options: see ``Options``.

    Raises:
        KdbenchError: if the request is wrong.
    """
    from kdbench.cli.options import plan_of
    from kdbench.matrix.check import check_cells

    with _asked("plan", suite, options) as request:
        return check_cells(plan_of(request))


def run(suite: File = "digits", **options: Unpack[Options]) -> Run:
    """Train what is not done of a request, and return what became of it; ``leaderboard`` and ``table`` show the figures.

    Args:
        suite: a suite, or the path of its YAML file.
        **options: see ``Options``.

    Raises:
        KdbenchError: if the request is wrong. A cell that fails is in ``failed`` of what is returned.
        KeyboardInterrupt: if it was interrupted; the same call goes on.
    """
    from kdbench.cli.run import tell, train
    from kdbench.launch.choose import check_machine

    with _asked("run", suite, options) as request:
        _alone()
        check_machine(request)
        ran = train(request)
        tell(ran)
        return ran


def tune(
    suite: File = "digits",
    *,
    trials: int,
    space: File | Mapping[str, Any] | None = None,
    sampler: Literal["random", "optuna"] = "random",
    search_seed: int = 0,
    to: File = "best.yaml",
    **options: Unpack[Options],
) -> Search:
    """Search hyper-parameters on held-out images, with the same number of trials for each method.

    Args:
        suite: a suite, or the path of its YAML file.
        trials: of each method, its own values included.
        space: a YAML file, or a mapping, method to hyper-parameter to what it is drawn from; None: the ranges that methods declare.
        sampler: ``"random"``, or ``"optuna"`` (an extra).
        search_seed: of what is drawn.
        to: the file for ``settings`` of a run.
        **options: see ``Options``.

    Raises:
        KdbenchError: if the request is wrong.
        KeyboardInterrupt: if it was interrupted; the same call goes on.
    """
    from kdbench.cli.tune import search
    from kdbench.launch.choose import check_machine

    own = {"trials": trials, "sampler": sampler, "search_seed": search_seed, "to": fspath(to)}
    if space is not None and not isinstance(space, Mapping):
        own["space"] = fspath(space)
    with _asked("tune", suite, options, own) as request:
        _alone()
        check_machine(request)
        return search(request, trials, space, sampler, search_seed, fspath(to))


def table(
    suite: File = "digits",
    *,
    layout: Literal["pairs", "methods"] = "pairs",
    metric: str = "top1",
    select: Literal["last", "best"] | None = None,
    against_published: bool = False,
    published: bool = False,
    ablation: str = "",
    ours: str = "",
    baseline: str = "",
    order: Sequence[str] = (),
    rename: Mapping[str, str] = MappingProxyType({}),
    decimals: int | None = None,
    **options: Unpack[Options],
) -> View:
    """Pairs by methods, for a paper.

    Args:
        suite: a suite, or the path of its YAML file.
        layout: what the rows are.
        metric: what is shown.
        select: the last epoch's figure, or the best test epoch's, which is optimistic; None: the protocol's.
        against_published: our figures beside those of papers.
        published: figures of papers in the same table.
        ablation: a method whose settings are shown: itself and its variants.
        ours: the method that stands last, compared with the best other.
        baseline: what gains are counted from; empty: KD.
        order: methods that stand first.
        rename: a method, net or suite to how it is called.
        decimals: of figures; gains have one more.
        **options: see ``Options``.

    Raises:
        KdbenchError: if the request is wrong, or there is nothing to show.
    """
    from kdbench.cli.table import build_tables

    own: dict[str, Any] = {"layout": layout, "metric": metric, "select": select, "ablation": ablation, "rename": rename}
    own |= {"against_published": against_published, "published": published}
    own |= {"ours": ours, "baseline": baseline, "order": order, "decimals": decimals}
    with _asked("table", suite, options, own) as request:
        tables, damaged = build_tables(request, **own)
        return View(tuple(tables), tuple(damaged))


def leaderboard(
    suite: File = "digits",
    *,
    metric: str = "top1",
    select: Literal["last", "best"] | None = None,
    **options: Unpack[Options],
) -> View:
    """Methods ranked, with intervals, wins, harms and cost. Arguments and errors as of ``table``."""
    from kdbench.cli.board import build_boards

    with _asked("leaderboard", suite, options, {"metric": metric, "select": select}) as request:
        boards, damaged = build_boards(request, metric, select)
        return View(tuple(boards), tuple(damaged))


@contextlib.contextmanager
def _asked(
    verb: str, suite: File, options: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> Iterator[Request]:
    """The request of a call, as the command line parses the same words; within, these are the command that was given."""
    from click import Context, UsageError

    from kdbench.cli.parser import cli
    from kdbench.cli.replay import CALLED, words_of
    from kdbench.matrix.request import Request

    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise UnknownNameError("option", unknown[0], Options.__annotations__)
    given = {name: _plain(name, value) for name, value in options.items() if value is not None}
    words = words_of({"suite": fspath(suite), **given})
    for name, value in (own or {}).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += [word for key, text in value.items() for word in (option, f"{key}={text}")]
        elif value is not None and value is not False and value not in ("", (), []):
            plain = str(value) if isinstance(value, str | int) else ",".join(value)
            words += [option, *([] if value is True else [plain])]
    command = cli.get_command(Context(cli), verb)
    assert command is not None
    try:
        fields = command.make_context(verb, list(words)).params
    except UsageError as error:
        raise KdbenchError(f"kdbench.{verb}: {error.format_message()}") from None
    token = CALLED.set([verb, *words])
    try:
        request = Request(
            **{name: value for name, value in fields.items() if name in ("suite", *Options.__annotations__)}
        )
        yield replace(request, **{name: given[name] for name in ("set", "variants") if name in given})  # displays too
    finally:
        CALLED.reset(token)


def _plain(name: str, value: Any) -> Any:
    """A value as ``words_of`` takes it: lists as tuples, one name for a list of one, paths as texts."""
    if name in ("set", "variants"):
        for key, content in value.items():
            if not isinstance(content, Mapping) or (
                name == "variants" and not {"method"} <= content.keys() <= _VARIANT
            ):
                form = "hyper-parameters" if name == "set" else "method, set and display"
                raise KdbenchError(f"{name}: {key!r} is {content!r}, and not a mapping of {form}")
        return value if name == "set" else {key: {"set": {}, **content} for key, content in value.items()}
    if isinstance(value, PathLike):
        value = fspath(value)
    if name in (
        "methods",
        "pairs",
        "seeds",
        "train_teachers",
        "fine_tune_teachers",
        "confirm",
        "log",
        "plugins",
        "hooks",
    ):
        single = isinstance(value, str | int | PathLike)
        return tuple(str(part) for part in ([value] if single else value))
    return value


def _alone() -> None:
    """Refuse to train in one of several processes.

    Raises:
        KdbenchError: under torchrun, or in a Slurm step of several tasks.
    """
    from kdbench.launch.torchrun import launcher_of_environment

    if launcher_of_environment():
        raise KdbenchError("under torchrun, or in a Slurm step of several tasks: use kdbench run or kdbench tune")
