"""DeiT, MiniLMv2 and the attention that it reads: against the net's own attention, and against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kdbench import Batch, Outputs, Task
from kdbench.engine.cell import _only
from kdbench.engine.micro_batches import rows_of_outputs
from kdbench.errors import HyperparameterError
from kdbench.matrix.check import lacking
from kdbench.method import NEEDS
from kdbench.methods.deit import DeiT, DeiTSoft
from kdbench.methods.minilmv2 import MiniLMv2, relation_loss
from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import NetSpec

CLASSES = 5
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TASK = Task(CLASSES, 10, torch.zeros(10, dtype=torch.int64))
BATCH = Batch(torch.tensor([0, 3, 1]), torch.arange(3), label_smoothing=0.1)


def net(timm="vit_32px_small", **args):
    torch.manual_seed(0)
    return TappedNet(NetSpec(timm=timm, args={**VIT, **args}), CLASSES).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("args", [{}, {"qk_norm": True}, {"reg_tokens": 2}])
def test_attention_is_what_the_net_computes_itself_and_changes_nothing_else(images, args):
    tapped = net(**args)
    plain = tapped(images, {"logits", "stages"})
    outputs = tapped(images, {"logits", "stages", "attention"})
    assert torch.equal(outputs.logits, plain.logits)
    seen = []
    for number in tapped.taps:
        block = tapped.net.blocks[number].attn
        block.fused_attn = False
        block.attn_drop.register_forward_hook(lambda module, given, returned: seen.append(given[0]))
    tapped(images)
    assert len(outputs.attention) == len(seen) == 4
    for attention, own, stage in zip(outputs.attention, seen, outputs.stages, strict=True):
        torch.testing.assert_close(attention.maps, own)
        assert attention.values.shape == (3, 2, stage.all_tokens.shape[1], 16)
    part = rows_of_outputs(outputs.detach(), slice(1, 3)).attention[0]
    assert torch.equal(part.keys, outputs.attention[0].keys[1:])
    assert part.keys.grad_fn is None
    assert _only(outputs, frozenset({"logits"})).attention is None
    assert plain.attention is None


@pytest.mark.parametrize("timm", ["resnet_32px_small", "swin_32px_small", "mixer_32px_small"])
def test_nets_without_the_attention_of_a_vit_say_so(timm):
    tapped = TappedNet(NetSpec(timm=timm), CLASSES)
    assert tapped(torch.rand(2, 3, 32, 32), NEEDS).attention is None
    vit = net().describe()
    assert "attention" not in vit.lacks
    reason = f"it needs attention; the stages of net {timm} do not end in the blocks of a ViT of timm"
    assert lacking(MiniLMv2, vit, tapped.describe()) == lacking(MiniLMv2, tapped.describe(), vit) == reason


def test_relations_are_those_of_the_paper():
    draw = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 4, 6, generator=draw), torch.randn(2, 4, 12, generator=draw)
    expected = 0.0
    for sample in range(2):
        for head in range(3):
            own, taught = student[sample, :, 2 * head : 2 * head + 2], teacher[sample, :, 4 * head : 4 * head + 4]
            for token in range(4):
                p = torch.softmax(taught @ taught[token] / math.sqrt(4), 0)
                q = torch.softmax(own @ own[token] / math.sqrt(2), 0)
                expected += float((p * (p / q).log()).sum()) / (3 * 4) / 2
    assert float(relation_loss(student, teacher, 3)) == pytest.approx(expected, rel=1e-5)
    assert float(relation_loss(teacher, teacher, 3)) == pytest.approx(0, abs=1e-6)


def test_minilmv2_sums_the_relations_of_queries_keys_and_values_of_chosen_blocks(images):
    small, large = net(), net(embed_dim=48, num_heads=3)
    outputs = [each(images, MiniLMv2.needs) for each in (small, large)]
    method = MiniLMv2(small.describe(), large.describe(), TASK, stage=3, relation_heads=8, relation_weight=2.0)
    terms = method(BATCH, *outputs)

    def joined(value):
        return value.transpose(1, 2).flatten(2)

    pairs = zip(outputs[0].attention[3].tensors, outputs[1].attention[2].tensors, strict=True)
    expected = sum(relation_loss(joined(own), joined(taught), 8) for own, taught in pairs)
    torch.testing.assert_close(terms["relation"], 2 * expected)
    # by default the most heads up to the teacher's three that divide both widths: 2 of 32 and 48
    usual = MiniLMv2(small.describe(), large.describe(), TASK)(BATCH, *outputs)["relation"]
    pairs = zip(outputs[0].attention[3].tensors, outputs[1].attention[3].tensors, strict=True)
    torch.testing.assert_close(usual, sum(relation_loss(joined(own), joined(taught), 2) for own, taught in pairs))
    with pytest.raises(HyperparameterError, match="relation_heads = 5: must divide 32 and 48"):
        MiniLMv2(small.describe(), large.describe(), TASK, relation_heads=5)


def test_deit_teaches_the_distillation_token_where_there_is_one(images):
    student = net("deit_32px_small").train()
    outputs = student(images)
    own, token = outputs.heads
    torch.testing.assert_close(outputs.logits, (own + token) / 2)  # what inference takes
    teacher = Outputs(torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(3)))
    info = student.describe()
    terms = DeiT(info, info, TASK)(BATCH, outputs, teacher)
    decided = teacher.logits.argmax(1)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(own, BATCH.labels, label_smoothing=0.1) / 2)
    torch.testing.assert_close(terms["kd"], F.cross_entropy(token, decided) / 2)
    soft = DeiTSoft(info, info, TASK)(BATCH, outputs, teacher)
    p, q = (teacher.logits / 3).softmax(1), (token / 3).softmax(1)
    torch.testing.assert_close(soft["kd"], 0.1 * 9 * (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(soft["ce"], 0.9 * F.cross_entropy(own, BATCH.labels, label_smoothing=0.1))
    single = Outputs(own)
    torch.testing.assert_close(DeiT(info, info, TASK)(BATCH, single, teacher)["kd"], F.cross_entropy(own, decided) / 2)
