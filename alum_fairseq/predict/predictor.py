"""Text in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data.data_utils import batch_by_size, collate_tokens
from torch import Tensor

from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.data.encoding import ExampleEncoder
from alum_fairseq.data.pieces import PieceEncoder
from alum_fairseq.data.vocabulary import DICTIONARY
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import Outputs, Piece, TokenProblem

MAX_TOKENS = 4096


class Predictor:
    """A fine-tuned model that reads text.

    Args:
        checkpoint: with a classification head, its data and its vocabulary.
        device: where to compute.

    Attributes:
        model: in evaluation mode, on the device.
        problem: what its logits mean.
        truncated: how many examples were too long so far.

    Raises:
        UsageError: something is missing or does not fit; the message says what.

    Example::

        predictor = Predictor.load("finetuned/checkpoint_best.pt")
        predictor.predict(["A gripping film.", "Two hours too long."])
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.model = checkpoint.model.to(device).eval()
        self.problem = checkpoint.problem
        self.truncated = 0
        vocabulary = checkpoint.vocabulary
        symbols = vocabulary.dictionary.symbols
        if symbols != checkpoint.dictionary.symbols[: len(symbols)]:
            raise UsageError(
                f"{vocabulary.folder}/{DICTIONARY} is not the dictionary that the model was "
                "trained with"
            )
        layout = checkpoint.layout
        self._pieces = self._encoder = None
        if isinstance(self.problem, TokenProblem):
            self._pieces = PieceEncoder(vocabulary, layout)
        else:
            self._encoder = ExampleEncoder(vocabulary, layout.max_positions, self.problem)

    @classmethod
    def load(
        cls,
        path: Path | str,
        data: Path | str | None = None,
        vocabulary: Path | str | None = None,
        head: str | None = None,
        labels: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Predictor:
        """Load a checkpoint; see :class:`alum_fairseq.checkpoints.checkpoint.Checkpoint`."""
        return cls(Checkpoint(path, data, vocabulary, head, labels), device)

    def predict(
        self, examples: Sequence[str | Sequence[str]], max_tokens: int = MAX_TOKENS
    ) -> list[Any]:
        """Predict examples.

        Args:
            examples: each a text, a pair of texts, or for multiple choice the context and the
                candidates; a question and its context, or a sentence to be tagged.
            max_tokens: the most tokens of a batch, padding included.

        Returns:
            A prediction for each, in their order: a :class:`Prediction`; of a question a
            :class:`SpanAnswer`, of a sentence its :class:`Tags`.

        Raises:
            UsageError: an example has too few or too many texts.
        """
        return [self.problem.prediction(row) for row in self.logits(examples, max_tokens)]

    def logits(
        self, examples: Sequence[str | Sequence[str]], max_tokens: int = MAX_TOKENS
    ) -> Tensor | list[Outputs]:
        """What the head puts out: ``N x C`` in float32 on the CPU; see :meth:`predict`.

        Of a head for every token it is :class:`Outputs` of each example.
        """
        if isinstance(examples, str):
            raise UsageError(f"examples is the text {examples!r:.60}: give a list of examples")
        if self._pieces is not None:
            return self._of_tokens([self._texts(example) for example in examples], max_tokens)
        inputs = [self.inputs_of(example) for example in examples]
        flat = [tokens for each in inputs for tokens in each]
        outputs = torch.empty(len(flat), self.checkpoint.heads[self.checkpoint.head])
        for batch in _batches(flat, max_tokens):
            outputs[batch] = self.score([flat[i] for i in batch]).float().cpu()
        return outputs.view(len(inputs), -1) if inputs else outputs

    def _of_tokens(self, examples: list[tuple[str, ...]], max_tokens: int) -> list[Outputs]:
        pieces = [self.pieces_of(texts) for texts in examples]
        flat = [piece.tokens for each in pieces for piece in each]
        found: list[Any] = [None] * len(flat)
        for batch in _batches(flat, max_tokens):
            scores = self.score([flat[i] for i in batch]).float().cpu()
            for i, logits in zip(batch, scores, strict=True):
                found[i] = logits[: len(flat[i])]
        rest = iter(found)
        return [
            Outputs(texts, each, [next(rest) for _ in each])
            for texts, each in zip(examples, pieces, strict=True)
        ]

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor]) -> Tensor:
        """What the head puts out for one batch of token sequences."""
        tokens = collate_tokens(list(inputs), self.checkpoint.dictionary.pad()).to(self.device)
        head = self.checkpoint.head
        return self.model(tokens, features_only=True, classification_head_name=head)[0]

    def inputs_of(self, example: str | Sequence[str]) -> list[Tensor]:
        """The token sequences that the model reads for an example: one, or one a candidate.

        Raises:
            UsageError: the example has too few or too many texts.
        """
        texts = self._texts(example)
        if self._pieces is not None:
            return [piece.tokens for piece in self._pieces(texts)]
        encoded = self._encoder(texts)
        self.truncated += encoded.truncated
        return self.checkpoint.layout.inputs(encoded.texts, self.checkpoint.dictionary)

    def pieces_of(self, texts: tuple[str, ...]) -> list[Piece]:
        """The inputs of an example of a :class:`TokenProblem`."""
        assert self._pieces is not None
        return self._pieces(texts)

    def _texts(self, example: str | Sequence[str]) -> tuple[str, ...]:
        texts = (example,) if isinstance(example, str) else tuple(example)
        self.check_inputs(len(texts))
        return texts

    def check_inputs(self, texts: int) -> None:
        """Raise a UsageError unless an example has so many texts."""
        self.problem.check_texts(texts)
        record = self.checkpoint.record
        if record is not None and texts != record.inputs:
            raise UsageError(f"an example has {texts} texts, of those trained on {record.inputs}")


def _batches(inputs: Sequence[Tensor], max_tokens: int) -> Iterator[Any]:
    """Indices, the longest first: what does not fit into memory is seen at once."""
    lengths = np.array([len(tokens) for tokens in inputs], dtype=np.int64)
    if not len(lengths):
        return
    max_tokens = max(max_tokens, int(lengths.max()))
    order = np.argsort(-lengths, kind="stable")
    yield from batch_by_size(order, lengths.__getitem__, lengths[order], max_tokens=max_tokens)
