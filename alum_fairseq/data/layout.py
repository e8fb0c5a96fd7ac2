"""How the texts of an example become the inputs of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fairseq.data import Dictionary
from torch import Tensor

from alum_fairseq.problems import SupervisedProblem


@dataclass(frozen=True)
class Layout:
    """How fairseq's task lays out the texts of an example.

    Attributes:
        problem: which texts the model reads together.
        max_positions: the most tokens of an input.
        init_token: index of the symbol before the first text, or None.
        separator_token: of that before the second, or None.
        max_option_length: the most tokens of the first text, which is cut off after them; or None.
    """

    problem: SupervisedProblem
    max_positions: int
    init_token: int | None = 0
    separator_token: int | None = 2
    max_option_length: int | None = None

    def inputs(self, symbols: Sequence[str], dictionary: Dictionary) -> list[Tensor]:
        """The model's inputs for one example: one, or one for every candidate."""
        texts = [
            dictionary.encode_line(text, add_if_not_exist=False, append_eos=True).long()
            for text in symbols
        ]
        return [self._joined(*together) for together in self.problem.inputs(texts)]

    def _joined(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        joined = torch.cat([_one(self.init_token), first])[: self.max_option_length]
        if second is None:
            return joined
        return torch.cat([joined, _one(self.separator_token), second])

    def opening(self, texts: Sequence[Tensor]) -> Tensor:
        """What stands before the last text of an example; each text before it ends with </s>."""
        between = [torch.cat([text, _one(self.separator_token)]) for text in texts]
        return torch.cat([_one(self.init_token), *between])


def _one(token: int | None) -> Tensor:
    return torch.tensor([] if token is None else [token], dtype=torch.long)
