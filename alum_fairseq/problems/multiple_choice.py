"""Multiple choice: which candidate fits the context?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from alum_fairseq.errors import UsageError
from alum_fairseq.problems.classification import Classification
from alum_fairseq.problems.problem import Text, register_problem


@register_problem
@dataclass(frozen=True)
class MultipleChoice(Classification):
    """One logit for each candidate, each from a pass of its own over the candidate and the context.

    The first text of an example is the context, the others are the candidates.
    """

    name = "multiple_choice"
    binarized_labels = False

    @override
    def logits(self, outputs: Sequence[Tensor]) -> Tensor:
        """``B x C``, from C outputs of ``B x 1``."""
        return torch.cat(list(outputs), dim=1)

    @override
    def check_texts(self, count: int) -> None:
        wanted = 1 + len(self.labels)
        if count != wanted:
            raise UsageError(
                f"the model chooses among {wanted - 1} candidates: an example has {wanted} texts, "
                f"the context first, not {count}"
            )

    @override
    def check_columns(self, count: int, place: str) -> None:
        if len(self.labels) != count - 1:
            numbers = " ".join(map(str, range(count - 1)))
            raise UsageError(
                f"{place}: the labels are {self._listed}, but they must say which of {count - 1} "
                f"choices is right: give another --label, or by --labels a name for each choice, "
                f"such as --labels {numbers}"
            )

    @override
    def inputs(self, texts: Sequence[Text]) -> list[tuple[Text, ...]]:
        context, *candidates = texts
        return [(candidate, context) for candidate in candidates]
