"""A checkpoint under test: its answers to texts, and its embeddings for attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from fairseq.data.data_utils import collate_tokens
from torch import Tensor

from alum_fairseq.adversarial.divergences import Divergence, get_divergence
from alum_fairseq.encoder.tap import EncoderTap
from alum_fairseq.predict import Predictor
from alum_fairseq.robustness.attacks.noise import seeded
from alum_fairseq.robustness.attacks.pgd import DIVERGENCE, LOSS, MARGIN, RATIO, Target
from alum_fairseq.robustness.types import Example, Texts, Verdict

# Of the longest example in a batch, the least that another may have of its length.
_ALIKE = 0.7
_TEMPERATURES = torch.logspace(-2, 2, 81, dtype=torch.float64)


class Subject:
    """A predictor with frozen parameters, and which of its answers count as right.

    Args:
        tolerance: for regression, how far from the answer a right prediction may be; else None.
        max_tokens: the most tokens of a batch, padding included.
        seed: of the random starts of attacks.
    """

    def __init__(
        self, predictor: Predictor, tolerance: float | None, max_tokens: int, seed: int
    ) -> None:
        self.predictor = predictor
        self.problem = predictor.problem
        if tolerance is not None:
            self.problem = self.problem.within(tolerance, ())
        self._max_tokens = max_tokens
        self._seed = seed
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

    def temperature(self, examples: Sequence[Example]) -> float:
        """That which calibrates the model on examples (Guo et al. 2017, arXiv 1706.04599)."""
        outputs = self.predictor.logits([e.texts for e in examples], self._max_tokens).double()
        right = self._right(examples)
        tried = _TEMPERATURES.tolist()
        losses = [float(self.problem.loss(outputs / each, right).mean()) for each in tried]
        return tried[losses.index(min(losses))]

    def verdict(self, example: Example, outputs: Tensor) -> Verdict:
        """What outputs of the head (``C``) mean for an example."""
        return self.problem.verdict(outputs, self._right([example])[0])

    def logits(self, examples: Sequence[Texts]) -> list[list[float]]:
        """Of every class, for each of some texts."""
        return self.predictor.logits(examples, self._max_tokens).tolist()

    def batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """The examples in their order, as many at a time as fit into a batch.

        Where they come sorted by length, as they should, little of a batch is padding.
        """
        batch: list[Example] = []
        longest = 0
        for example in examples:
            inputs = self.predictor.inputs_of(example.texts)
            length = max(map(len, inputs))
            fits = (len(batch) + 1) * len(inputs) * max(length, longest) <= self._max_tokens
            if batch and not (fits and length >= _ALIKE * longest):
                yield batch
                batch, longest = [], 0
            batch.append(example)
            longest = max(length, longest)
        if batch:
            yield batch

    def target(self, examples: Sequence[Example]) -> Target:
        """Examples as an attack on embeddings sees them.

        The candidates of an example are laid side by side, and are perturbed together.
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
        width = tap.embeddings.shape[-1]

        def predict(embeddings: Tensor, rows: Tensor) -> Tensor:
            flat = (rows.unsqueeze(1) * each + torch.arange(each, device=rows.device)).flatten()
            outputs = tap.of_rows(flat).rerun(embeddings.reshape(len(flat), -1, width))
            return outputs.view(len(rows), -1)

        clean = tap.logits.view(len(examples), -1)
        right = self._right(examples).to(clean.device)

        def margins(outputs: Tensor, rows: Tensor) -> Tensor:
            return self.problem.margins(outputs, right[rows])

        def loss(outputs: Tensor, rows: Tensor) -> Tensor:
            return self.problem.attack_loss(outputs, right[rows])

        def divergence(outputs: Tensor, rows: Tensor) -> Tensor:
            found = self.divergence.function(outputs, clean[rows].double())
            return found.view(len(rows), -1).sum(1)

        def margin(outputs: Tensor, rows: Tensor) -> Tensor:
            return -margins(outputs, rows).amin(1)

        def ratio(outputs: Tensor, rows: Tensor) -> Tensor:
            best = outputs.topk(min(3, outputs.shape[1])).values
            # Of two classes the margin itself, which would be divided by its own size.
            spread = best[:, 0] - best[:, -1] if best.shape[1] == 3 else torch.ones_like(best[:, 0])
            return margin(outputs, rows) / spread

        return Target(
            predict,
            tap.embeddings.reshape(len(examples), -1, width),
            clean,
            tap.mask.view(len(examples), -1),
            {LOSS: loss, DIVERGENCE: divergence, MARGIN: margin, RATIO: ratio},
            margins,
            [seeded(self._seed, example.number).getrandbits(48) for example in examples],
        )

    def _right(self, examples: Sequence[Example]) -> Tensor:
        """The right answers, as the problem has them."""
        return self.problem.targets([e.accepted or (e.answer,) for e in examples])
