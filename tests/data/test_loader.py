"""Loader processes: the same batches as without, errors that name what died or hangs, and no process left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.data.exact import ExactPipeline
from kdbench.data.loader import Loader, default_workers
from kdbench.data.pipeline import make_pipeline
from kdbench.data.transforms import EvaluationView
from kdbench.data.views import evaluation_batches
from kdbench.errors import KdbenchError
from kdbench.suite.dataset import DatasetSpec
from tests.data.pictures import files, recipe
from tests.data.test_augment import EVERYTHING, assert_part

# One worker of the test suite starts the fork server, which all of these share.
pytestmark = pytest.mark.xdist_group("loaders")


class Questions:
    """Work that tells about the process it is done in."""

    def __call__(self, question: str) -> Any:
        if question == "process":
            return os.getpid()
        if question == "threads":
            return torch.get_num_threads(), torch.cuda.is_initialized()
        if question == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if question == "hang":
            time.sleep(60)
        if question == "refuse":
            raise KdbenchError("no such picture")
        raise ZeroDivisionError("a mistake in a reader")

    def describe(self, question: str) -> str:
        return f"the question {question!r}"


def gone(process: int) -> bool:
    """Whether a process has ended (within a few seconds)."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def exact(data: Any = None, workers: int = 2, **kind: Any) -> Any:
    spec = DatasetSpec(name="imagenet1k", image_size=32)
    timeout = kind.pop("timeout", 60.0)
    wanted = recipe(pipeline="exact", **{**EVERYTHING, **kind})
    return make_pipeline(data or files(), spec, wanted, 4, 0, "cpu", True, workers=workers, timeout=timeout)


def test_batches_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.data.exact.PART_SIZE", 3)  # several processes work on a batch
    alone = exact(workers=0)
    for workers in (1, 2):
        pipe = exact(workers=workers)
        for epoch in range(2):
            for one, other in zip(alone.batches(epoch), pipe.batches(epoch), strict=True):
                assert_part(one, other, list(range(8)))
        iteration = pipe.batches(0)
        next(iteration)
        iteration.close()  # an epoch that is left in its middle, with batches under way
        assert_part(alone.make(0, 1), pipe.make(0, 1), list(range(8)))
        assert_part(alone.make(1, 1), next(pipe.batches(1, 1)), list(range(8)))
        pipe.close()
    pipe.make(0, 0)  # processes start again
    pipe.close()


def test_only_a_few_batches_are_under_way() -> None:
    pipe = exact(files(64), batch_size=4)
    waiting = [sum(len(worker.pending) for worker in pipe._loader._processes) for _ in pipe.batches(0)]
    assert len(waiting) == 16
    assert max(waiting) <= 4  # two parts for each process
    assert waiting[-1] == 0
    pipe.close()


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.data.views.EVALUATION_BATCH", 6)
    monkeypatch.setattr("kdbench.data.views._PART_SIZE", 2)
    view, device = EvaluationView(32), torch.device("cpu")
    shown = [list(evaluation_batches(files(), view, device, range(1, 20), workers=workers)) for workers in (0, 2)]
    assert [len(batch) for batch in shown[1]] == [6, 6, 6, 1]
    assert torch.equal(torch.cat(shown[0]), torch.cat(shown[1]))


def test_loader_processes_have_one_thread_and_no_cuda_context() -> None:
    loader: Loader[str, Any] = Loader(Questions(), 1)
    assert loader.result(loader.submit("threads")) == (1, False)
    loader.close()


def test_work_goes_to_processes_in_turn_and_answers_are_fetched_in_any_order() -> None:
    loader: Loader[str, Any] = Loader(Questions(), 2)
    tickets = [loader.submit("process") for _ in range(6)]
    answers = [loader.result(tickets[number]) for number in (5, 0, 3, 4, 1, 2)]
    assert answers[1] == answers[3] == answers[5] != answers[0]
    assert os.getpid() not in answers
    loader.close()
    assert all(gone(process) for process in answers)


def test_loader_processes_end_with_the_pipeline() -> None:
    loader: Loader[str, Any] = Loader(Questions(), 1)
    process = loader.result(loader.submit("process"))
    del loader
    gc.collect()
    assert gone(process)


def test_a_process_that_dies_is_named_with_what_it_was_at_and_others_can_be_started() -> None:
    loader: Loader[str, Any] = Loader(Questions(), 2, timeout=60)
    tickets = [loader.submit(question) for question in ("process", "die", "process")]
    assert loader.result(tickets[0])
    begun = time.monotonic()
    with pytest.raises(
        KdbenchError,
        match=r"^loader process 1 \(pid \d+\) died of SIGKILL: killed, perhaps for want of memory; it was at the question 'die'$",
    ):
        loader.result(tickets[1])
    assert time.monotonic() - begun < 30  # noticed at once, not after the time-out
    assert loader.result(loader.submit("process"))
    loader.close()


def test_a_process_that_hangs_is_named_after_the_time_out_and_ended() -> None:
    loader: Loader[str, Any] = Loader(Questions(), 1)
    process = loader.result(loader.submit("process"))  # its start, which may take longer, is over
    loader.timeout = 1.5
    with pytest.raises(
        KdbenchError, match=r"loader process 0 \(pid \d+\) has not answered for 1.5 s; .* question 'hang'"
    ):
        loader.result(loader.submit("hang"))
    assert gone(process)


def test_an_exception_in_a_process_is_one_line_that_names_the_work() -> None:
    loader: Loader[str, Any] = Loader(Questions(), 1)
    with pytest.raises(KdbenchError, match=r"^no such picture$"):
        loader.result(loader.submit("refuse"))
    with pytest.raises(
        KdbenchError, match=r"^ZeroDivisionError in a loader process at the question 'x': a mistake in a reader$"
    ):
        loader.result(loader.submit("x"))
    loader.close()


def test_a_training_run_says_which_images_a_process_died_or_hung_at() -> None:
    with pytest.raises(
        KdbenchError, match=r"ended with exit code 7; it was at train/\d+.png to train/\d+.png \(8 images\)"
    ):
        list(exact(files(deadly=2)).batches(0))
    with pytest.raises(KdbenchError, match=r"has not answered for 1 s; it was at train/"):
        list(exact(files(endless=2), timeout=1.0).batches(0))


def test_too_few_loader_processes_are_refused() -> None:
    with pytest.raises(KdbenchError, match="-1 loader processes: expected 0 or more"):
        exact(workers=-1)
    assert 1 <= default_workers() <= 8
    assert isinstance(exact(workers=None), ExactPipeline)


ORPHANS = """
import sys, time
from kdbench.data.loader import Loader
from tests.data.test_loader import Questions
if __name__ == "__main__":
    loader = Loader(Questions(), 2)
    print(*[loader.result(loader.submit("process")) for _ in range(2)], flush=True)
    loader.submit("hang")
    time.sleep(60)
"""


@pytest.mark.slow
def test_loader_processes_die_with_a_parent_that_is_killed_also_while_they_hang(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert parent.stdout is not None
    processes = [int(word) for word in parent.stdout.readline().split()]
    assert len(processes) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(gone(process) for process in processes)
