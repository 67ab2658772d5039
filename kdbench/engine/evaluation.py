"""Evaluation of all cells of a cohort on the measured split: logits, metrics, a row of each cell's history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from kdbench.data.images import Images
from kdbench.data.transforms import EvaluationView
from kdbench.data.views import KeptImages, evaluation_batches
from kdbench.engine import parallel
from kdbench.engine.cell import CellTrainer
from kdbench.engine.cohort import CohortModel
from kdbench.engine.faults import free_memory, is_device_lost, is_out_of_memory, release
from kdbench.plugins.metrics import measure, top1


@torch.no_grad()
def predict_all(
    predict: Callable[[Tensor], Tensor],
    data: Images,
    view: EvaluationView,
    device: torch.device,
    loaders: int | None = None,
) -> Tensor:
    """Logits (N, C) of a whole split, in batches of raw images in [0, 1]; several processes share the work."""
    batches = evaluation_batches(data, view, device, parallel.share_of(len(data)), workers=loaders)
    return parallel.join_shares(torch.cat([predict_batch(predict, images) for images in batches]), len(data))


def predict_batch(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (B, C) of a batch; of its halves where memory is too small for it.

    Raises:
        Exception: what ``predict`` raises, for a lack of memory with a single image only.
    """
    try:
        return predict(images)
    except Exception as error:
        if len(images) == 1 or is_device_lost(error) or not is_out_of_memory(error):
            raise
        release(error)
    free_memory(images.device)
    return torch.cat([predict_batch(predict, half) for half in images.chunk(2)])


class Evaluated:
    """A split to evaluate on, with the teacher's logits (N, C) on it, or None; ``loaders`` processes decode its images, once."""

    def __init__(
        self, data: Images, teacher_logits: Tensor | None, device: torch.device, loaders: int | None = None
    ) -> None:
        self.dataset = data
        self.images = KeptImages(data, device, loaders)
        self.labels = data.labels.to(device)
        self.teacher_logits = teacher_logits


class EvaluationLoop(BaseLoop):
    """Measures each living cell, and writes the row of its history.

    Args:
        runner: mmengine's.
        dataloader: the split (mmengine's name for it).
        evaluator: not used.
    """

    def __init__(self, runner: Runner, dataloader: Evaluated, evaluator: Any) -> None:
        super().__init__(runner, dataloader)
        self.split = dataloader

    def run(self) -> dict[str, dict[str, float]]:
        cohort: CohortModel = self.runner.model
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        cohort.eval()
        for view in dict.fromkeys(cell.spec.view for cell in cohort.alive):
            # images are made once for all cells that see the same
            self._predict(cohort, [cell for cell in cohort.alive if cell.spec.view == view], view)
        for cell in cohort.alive:
            with cohort.failing(cell, "the evaluation"):
                cell.history.append(self._row(cell))
                self._report(cell)
        rows = {cell.key: cell.history[-1] for cell in cohort.alive}
        self.runner.call_hook("after_val_epoch", metrics=rows)
        self.runner.call_hook("after_val")
        return rows

    @torch.no_grad()
    def _predict(self, cohort: CohortModel, cells: Sequence[CellTrainer], view: EvaluationView) -> None:
        """Logits of cells, and without averaged weights of those that average them, on the whole split."""
        count = len(self.split.dataset)
        found: dict[tuple[str, bool], list[Tensor]] = {}
        share = parallel.share_of(count)
        for images in self.split.images.batches(view, share):
            for cell in cells:
                if cell.key in cohort.failed:
                    continue
                with cohort.failing(cell, "the evaluation"):
                    for raw in (False, True) if cell.average is not None else (False,):
                        found.setdefault((cell.key, raw), []).append(
                            predict_batch(partial(cell.predict, raw=raw), images)
                        )
        for cell in cells:
            if cell.key in cohort.failed:
                continue
            with cohort.failing(cell, "the evaluation"):
                cell.last_logits = parallel.join_shares(torch.cat(found[cell.key, False]), count)
                if cell.average is not None:
                    cell.last_raw_logits = parallel.join_shares(torch.cat(found[cell.key, True]), count)

    def _row(self, cell: CellTrainer) -> dict[str, float]:
        assert cell.last_logits is not None
        row = {
            "epoch": self.runner.epoch,
            "lr": cell.optim_wrapper.optimizer.param_groups[0]["lr"],
            "loss": sum(cell.losses.values()),
            **{f"loss_{name}": value for name, value in cell.losses.items()},
            **measure(cell.last_logits, self.split.labels, self.split.teacher_logits, cell.spec.folder.say),
        }
        if cell.last_raw_logits is not None:
            row["raw_top1"] = float(top1(cell.last_raw_logits, self.split.labels, None))
        return row

    def _report(self, cell: CellTrainer) -> None:
        if not parallel.is_first():
            return
        row, epochs = cell.history[-1], self.runner.max_epochs
        self.runner.visualizers[cell.key].add_row(row, cell.spec.config)
        cell.spec.folder.say(
            f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}  top-1 {row['top1']:.2f}  lr {row['lr']:.3g}"
        )
        event: dict[str, Any] = {"event": "epoch", "cell": cell.key, "epochs": epochs}
        self.runner.emit({**event, "epoch": row["epoch"], "top1": row["top1"]})
