"""A checkpoint under test: its answers to texts, and its embeddings for attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain

import torch
from fairseq.data.data_utils import collate_tokens
from torch import Tensor

from alum_fairseq.adversarial.divergences import Divergence, get_divergence
from alum_fairseq.encoder.tap import EncoderTap
from alum_fairseq.predict import Predictor
from alum_fairseq.problems import Outputs, Piece, Right, TokenProblem
from alum_fairseq.robustness.attacks.noise import seeded
from alum_fairseq.robustness.attacks.pgd import DIVERGENCE, LOSS, MARGIN, RATIO, Target
from alum_fairseq.robustness.types import Example, Texts, Verdict

# Of the longest example in a batch, the least that another may have of its length.
_ALIKE = 0.7
# Where a model errs nowhere, none calibrates it: then the lowest.
_TEMPERATURES = torch.logspace(-2, 2, 49, base=2, dtype=torch.float64)


class Subject:
    """A predictor with frozen parameters, and which of its answers count as right.

    Args:
        tolerance: for regression, how far from the answer a right prediction may be; else None.
        max_tokens: the most tokens of a batch, padding included.
        seed: of the random starts of attacks.
        attacked: the examples that attacks look at, however many at a time.
    """

    def __init__(
        self,
        predictor: Predictor,
        tolerance: float | None,
        max_tokens: int,
        seed: int,
        attacked: Sequence[Example],
    ) -> None:
        self.predictor = predictor
        self.problem = predictor.problem
        if tolerance is not None:
            self.problem = self.problem.within(tolerance, ())
        self._max_tokens = max_tokens
        self._seed = seed
        self._attacked = attacked
        predictor.model.requires_grad_(False)

    @property
    def divergence(self) -> Divergence:
        """Between what the model puts out."""
        return get_divergence(self.problem.divergence)

    def verdicts(
        self, asked: Sequence[tuple[Example, Texts]], temperature: float = 1.0
    ) -> list[Verdict]:
        """The verdict on each text, given in place of those of its example.

        Their losses, which guide attacks, are those of logits divided by the temperature.
        """
        outputs = self.predictor.logits([texts for _, texts in asked], self._max_tokens)
        pairs = [(example, row) for (example, _), row in zip(asked, outputs, strict=True)]
        found = [self.verdict(*pair) for pair in pairs]
        if temperature == 1:
            return found
        cooled = [self.verdict(example, row / temperature).loss for example, row in pairs]
        return [replace(one, loss=loss) for one, loss in zip(found, cooled, strict=True)]

    @cached_property
    def temperature(self) -> float:
        """That which calibrates the model on what is attacked, from 1/4 to 4.

        Guo et al. (2017), https://arxiv.org/abs/1706.04599.
        """
        examples = self._attacked
        outputs = self.predictor.logits([e.texts for e in examples], self._max_tokens)
        if isinstance(self.problem, TokenProblem):
            right = [self._right_of(e, o.pieces) for e, o in zip(examples, outputs, strict=True)]
            parts = [
                (self.problem.of_outputs(one, of_one), [of_one])
                for one, of_one in zip(outputs, right, strict=True)
            ]
        else:
            parts = [(outputs.double(), self._right(examples))]
        tried = _TEMPERATURES.tolist()
        losses = [
            sum(float(self.problem.loss(logits / each, right).sum()) for logits, right in parts)
            for each in tried
        ]
        return tried[losses.index(min(losses))]

    def verdict(self, example: Example, outputs: Tensor | Outputs) -> Verdict:
        """What outputs of the head (``C``, or those of tokens) mean for an example."""
        return self.problem.verdict(outputs, self._right([example])[0])

    def logits(self, examples: Sequence[Texts]) -> list[list[float]]:
        """Of every class, for each of some texts."""
        return self.predictor.logits(examples, self._max_tokens).tolist()

    def batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """The examples in their order, as many at a time as fit into a batch.

        Where they come sorted by length, as they should, little of a batch is padding.
        """
        batch: list[Example] = []
        longest = count = 0
        for example in examples:
            inputs = self.predictor.inputs_of(example.texts)
            length = max(map(len, inputs))
            fits = (len(batch) + 1) * len(inputs) * max(length, longest) <= self._max_tokens
            alike = len(inputs) == count and length >= _ALIKE * longest
            if batch and not (fits and alike):
                yield batch
                batch, longest = [], 0
            batch.append(example)
            longest, count = max(length, longest), len(inputs)
        if batch:
            yield batch

    def target(self, examples: Sequence[Example]) -> Target:
        """Examples as an attack on embeddings sees them; each has as many inputs as the others.

        The inputs of an example (its candidates, or pieces) are laid side by side, and are
        perturbed together.
        """
        predictor = self.predictor
        inputs = [predictor.inputs_of(example.texts) for example in examples]
        each = len(inputs[0])  # model inputs an example
        tokens = collate_tokens(list(chain(*inputs)), predictor.checkpoint.dictionary.pad())
        tap = EncoderTap(predictor.model, dropout="independent")  # there is none: nothing to share
        with torch.no_grad(), tap.recording():
            predictor.model(
                tokens.to(predictor.device),
                features_only=True,
                classification_head_name=predictor.checkpoint.head,
            )
        width, device = tap.embeddings.shape[-1], tap.embeddings.device

        def predict(embeddings: Tensor, rows: Tensor) -> Tensor:
            flat = (rows.unsqueeze(1) * each + torch.arange(each, device=rows.device)).flatten()
            return shaped(tap.of_rows(flat).rerun(embeddings.reshape(len(flat), -1, width)), rows)

        if isinstance(self.problem, TokenProblem):
            problem = self.problem
            targets = [self._right_of(e, predictor.pieces_of(e.texts)) for e in examples]

            def right(rows: Tensor) -> Sequence[Right]:
                return [targets[row] for row in rows.tolist()]

            def shaped(outputs: Tensor, rows: Tensor) -> Tensor:
                pieces = outputs.view(len(rows), each, *outputs.shape[1:])
                return problem.predictions(pieces, right(rows))
        else:
            classes = self._right(examples).to(device)

            def right(rows: Tensor) -> Tensor:
                return classes[rows]

            def shaped(outputs: Tensor, rows: Tensor) -> Tensor:
                return outputs.view(len(rows), -1)

        clean = shaped(tap.logits, torch.arange(len(examples)))

        def margins(outputs: Tensor, rows: Tensor) -> Tensor:
            return self.problem.margins(outputs, right(rows))

        def loss(outputs: Tensor, rows: Tensor) -> Tensor:
            return self.problem.attack_loss(outputs, right(rows))

        def divergence(outputs: Tensor, rows: Tensor) -> Tensor:
            found = self.divergence.function(outputs, clean[rows].double())
            return found.view(len(rows), -1).sum(1)

        def margin(outputs: Tensor, rows: Tensor) -> Tensor:
            return -margins(outputs, rows).amin(1)

        def ratio(outputs: Tensor, rows: Tensor) -> Tensor:
            best = outputs.topk(min(3, outputs.shape[-1])).values
            spread = (best[..., 0] - best[..., -1]).view(len(rows), -1).sum(1)
            # Of two classes the margin itself, which would be divided by its own size.
            return margin(outputs, rows) / (spread if best.shape[-1] == 3 else 1)

        return Target(
            predict,
            tap.embeddings.reshape(len(examples), -1, width),
            clean,
            tap.mask.view(len(examples), -1),
            {LOSS: loss, DIVERGENCE: divergence, MARGIN: margin, RATIO: ratio},
            margins,
            [seeded(self._seed, example.number).getrandbits(48) for example in examples],
        )

    def _right_of(self, example: Example, pieces: Sequence[Piece]) -> Right:
        return self.problem.right_of(pieces, example.texts, example.answer)

    def _right(self, examples: Sequence[Example]) -> Tensor:
        """The right answers, as the problem has them."""
        return self.problem.targets([e.accepted or (e.answer,) for e in examples])
