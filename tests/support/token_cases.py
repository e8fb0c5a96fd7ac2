"""Batches of spans and of tags, and their losses written out by hand, a row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alum_fairseq.criterions.alum_sequence_tagging import AlumSequenceTagging
from alum_fairseq.criterions.alum_span_prediction import AlumSpanPrediction
from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.models.token_head import TOKEN_HEAD, add_token_head

TOKENS = ("span", "tags")
TAGS = 3
_EOS, _PAD, _IGNORED = 2, 1, -100


def make_tokens(kind: str, model: Any, sample: dict[str, Any]) -> None:
    """Give a model its head, and a batch of sentences its targets."""
    add_token_head(model, 2 if kind == "span" else TAGS)
    with torch.no_grad():
        model.token_head.weight.mul_(20)
    tokens = sample["net_input"]["src_tokens"]
    if kind == "span":
        tokens[:, 1] = _EOS  # the question is a token that is none
        sample["target"] = torch.tensor([[3, 4], [2, 2], [0, 0], [2, 2]])
        return
    target = torch.full_like(tokens, _IGNORED)
    for row, length in enumerate(sample["net_input"]["src_lengths"].tolist()):
        for place in range(1, length - 1, 2):
            target[row, place] = (row + place) % TAGS
    sample["target"] = target


def criterion_of(kind: str, task: Any) -> Callable[..., nn.Module]:
    """Ours, by its options."""
    if kind == "span":
        return lambda **options: AlumSpanPrediction(AlumConfig(**options), task)
    return lambda **options: AlumSequenceTagging(AlumConfig(**options), task)


class Plain(nn.Module):
    """The task's loss alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, model: nn.Module, sample: dict[str, Any]) -> tuple[Tensor, int, dict]:
        output = model(
            **sample["net_input"], features_only=True, classification_head_name=TOKEN_HEAD
        )[0]
        loss = 0.0
        for row, target in zip(self.predictions(sample, output), sample["target"], strict=True):
            pairs = zip(row.unbind(0), target.tolist(), strict=True)
            for scores, right in pairs:
                if right != _IGNORED:
                    # In float32, as fairseq's criteria take their losses.
                    part = -scores.float().log_softmax(0)[right]
                    loss = loss + (part / 2 if self.kind == "span" else part)
        return loss, len(sample["target"]), {}

    def predictions(self, sample: dict[str, Any], output: Tensor) -> Tensor:
        """Distributions over the last dimension."""
        if self.kind == "tags":
            return output
        rows = []
        for tokens, logits in zip(sample["net_input"]["src_tokens"], output, strict=True):
            ends = tokens.eq(_EOS).nonzero().flatten()
            in_play = [0, *range(int(ends[-2]) + 1, int(ends[-1]))]
            row = [logits[i] if i in in_play else logits[i] * 0 - 1e4 for i in range(len(tokens))]
            rows.append(torch.stack(row, dim=1))
        return torch.stack(rows)

    def weights(self, sample: dict[str, Any], predictions: Tensor) -> Tensor:
        """What each prediction counts."""
        if self.kind == "tags":
            return sample["target"].ne(_IGNORED).to(predictions)
        return predictions.new_full(predictions.shape[:2], 0.5)
