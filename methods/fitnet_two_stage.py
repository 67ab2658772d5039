"""FitNets as first published: the hint trains the lower part of the student, then KD trains all of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import init_like_ofa, kl_divergence
from kdbench.methods.fitnet import aligner


@register_method("fitnet-two-stage")
class FitNetTwoStage(Method):
    """Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550), in its two stages.

    First the hint alone, 1/2 ||u_h(x) - r(v_g(x))||^2 (eq. 3), for ``hint_share`` of the epochs: it trains the student up to
    the guided stage and the regressor r, and leaves what follows as it was initialised. Then KD alone, H(y, p_s) + lambda
    H(p_t, p_s) at temperature tau (eq. 2), for the whole student; lambda falls linearly from ``kd_weight`` to
    ``last_kd_weight``. Each stage has the recipe's whole schedule, shortened, and a fresh optimiser. Hint and guided layer
    are ``stage`` of both nets, by default the second, about the middle.

    Ours: the norm is a mean over elements; the regressor is ``fitnet``'s for any kind of pair, where the paper's is a
    convolution; KD is the KL divergence times tau^2, which has the gradient of the cross-entropy times tau^2; a number of epochs
    in place of early stopping on a validation set. lambda changes between epochs. Running statistics of
    BatchNorm layers above the guided one are updated in the first stage too.
    """

    display, family, fidelity = "FitNet (two stages)", "hint", "paper"
    needs = frozenset({"logits", "stages"})
    citation: ClassVar[dict[str, Any]] = {
        "key": "romero2015fitnets",
        "authors": "Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, "
        "Carlo and Bengio, Yoshua",
        "title": "FitNets: Hints for Thin Deep Nets",
        "venue": "ICLR",
        "year": 2015,
        "arxiv": "1412.6550",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        hint_share: Annotated[float, Range(above=0, below=1, search=(0.1, 0.6))] = 0.3,
        stage: Annotated[int, Range(at_least=1, at_most=4)] = 2,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 3.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 4.0,
        last_kd_weight: Annotated[float, Range(at_least=0)] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.stage = stage
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weights = kd_weight, last_kd_weight
        self.regressor = aligner(student.stages[stage - 1], teacher.stages[stage - 1])
        init_like_ofa(self.regressor)
        if task.epochs > 1:  # a single epoch is KD
            self.phases = (min(max(1, round(hint_share * task.epochs)), task.epochs - 1),)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        nothing = student.logits.new_zeros(())
        begin = self.phases[0] if self.phases else 0
        if batch.epoch < begin:
            assert student.stages is not None
            assert teacher.stages is not None
            hint = self.regressor(student.stages[self.stage - 1].map, teacher.stages[self.stage - 1].map)
            return {"hint": hint / 2, "ce": nothing, "kd": nothing}
        first, last = self.kd_weights
        weight = first + (last - first) * (batch.epoch - begin) / max(1, self.task.epochs - 1 - begin)
        return {
            "hint": nothing,
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": weight * kl_divergence(student.logits, teacher.logits, self.temperature),
        }
