"""All checks of one method, one after the other; a failure of one does not stop the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from kdbench.conformance import watch
from kdbench.conformance.bench import PAIRS, Pair, renew_nets, teacher_hashes, teachers_are_frozen
from kdbench.conformance.building import declaration, reason_against
from kdbench.conformance.checks import ON_EVERY_PAIR, ON_SOME_PAIRS
from kdbench.conformance.findings import Examination, Failure, Skip, Wrong, merged, one_line, trace
from kdbench.conformance.settings import ranges, settings
from kdbench.errors import UnsupportedPairError
from kdbench.method import NEEDS, Method
from kdbench.plugins.entry import MethodEntry

#: The order in which pairs are chosen for checks that need only some: the first three have each family on either side.
_PREFERRED = (Pair("vit", "mlp"), Pair("mlp", "cnn"), Pair("cnn", "vit"), *PAIRS)


def check_method(entry: MethodEntry, pairs: Sequence[Pair] = PAIRS) -> list[Failure]:
    """The failures of a method (from ``kdbench.plugins.registry.catalog(plugins)``) on these kinds of teacher and student."""
    return examine(entry, pairs=pairs).failures


def examine(
    entry: MethodEntry, progress: Callable[[str], None] = lambda check: None, pairs: Sequence[Pair] = PAIRS
) -> Examination:
    """Run all checks of a method; ``progress`` is called with the name of each before it runs."""
    begun = time.monotonic()
    inspector = _Inspector(entry, progress, pairs)
    before, teachers = watch.global_state(), teacher_hashes()
    try:
        inspector.run()
        if teacher_hashes() != teachers:
            inspector.fail("teacher", (), "a parameter or buffer of a teacher changed; never write to the teacher")
    finally:
        watch.restore(before)
        if teacher_hashes() != teachers or not teachers_are_frozen():
            renew_nets()
    return Examination(entry.name, merged(inspector.failures), inspector.skips, time.monotonic() - begun)


class _Inspector:
    def __init__(self, entry: MethodEntry, progress: Callable[[str], None], pairs: Sequence[Pair]) -> None:
        self.entry = entry
        self.progress = progress
        self.pairs = pairs
        self.failures: list[Failure] = []
        self.skips: list[Skip] = []

    def run(self) -> None:
        cls = self._imported()
        if cls is None:
            return
        self._guard("declaration", (), partial(declaration, self.entry, cls, self.pairs))
        if not issubclass(cls, Method) or not set(cls.needs) | set(cls.predict_needs) <= NEEDS:
            return
        sound = self._every_pair(cls)
        if not sound:
            return
        some = [pair for pair in dict.fromkeys((*_PREFERRED, *sound)) if pair in sound]
        for name, check, number in ON_SOME_PAIRS:
            for pair in some[:number]:
                self._guard(name, (str(pair),), partial(check, cls, pair))
        self._guard("ranges", (), partial(ranges, self.entry, cls, some[0]))
        self._guard("settings", (), partial(settings, self.entry, cls, some[:3]))

    def _imported(self) -> Any:
        self.progress("import")
        try:
            return self.entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in a plugin must not end the others
            details = getattr(error, "details", "") or trace(error)
            self.fail("import", (), f"{one_line(error)}; correct what its traceback shows (KDBENCH_DEBUG=1)", details)
            return None

    def _every_pair(self, cls: type[Method]) -> list[Pair]:
        """Run the checks of every pair; returns the pairs that pass."""
        sound = []
        for pair in self.pairs:
            try:
                reason = reason_against(cls, pair)
            except Wrong as wrong:
                self.fail(wrong.check, (str(pair),), wrong.advice, wrong.details)
                continue
            if reason is not None:
                self.skips.append(Skip(self.entry.name, str(pair), reason))
                continue
            for name, check in ON_EVERY_PAIR:
                if not self._guard(name, (str(pair),), partial(check, cls, pair)):
                    break
            else:
                sound.append(pair)
        if not sound and not self.failures:
            self.fail("build", (), "supports() refuses every pair; a method must run on at least one kind of pair")
        return sound

    def _guard(self, name: str, where: tuple[str, ...], check: Callable[[], Iterable[Wrong]]) -> bool:
        """Run a check, record its failures and changes of global state; returns whether it ran to its end."""
        self.progress(name)
        before = watch.global_state()
        complete = False
        try:
            for wrong in check():
                self.fail(wrong.check, where, wrong.advice, wrong.details)
            complete = True
        except KeyboardInterrupt:
            raise
        except UnsupportedPairError as error:
            self.skips.append(Skip(self.entry.name, ", ".join(where), str(error)))
        except Wrong as wrong:
            self.fail(wrong.check, where, wrong.advice, wrong.details)
        except BaseException as error:
            self.fail(
                name, where, f"raised {one_line(error)}; correct it (KDBENCH_DEBUG=1 shows the traceback)", trace(error)
            )
        changed = watch.changes(before)
        if changed:
            watch.restore(before)
            self.fail(
                "global state", where, f"building or running it changed the {changed[0]}; leave global state as it is"
            )
        return complete

    def fail(self, check: str, where: tuple[str, ...], advice: str, details: str = "") -> None:
        self.failures.append(Failure(self.entry.name, check, advice, where, details))
