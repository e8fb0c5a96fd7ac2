"""fairseq's RoBERTa as the adversary's tool: which words fit a gap, and how alike two texts are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path

import torch
from fairseq.data.data_utils import collate_tokens
from torch import Tensor

from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.attacks.words import Candidates, Editor, Place, written_like

_BATCH = 64
# What training moves from 0, where it starts.
_OF_A_HEAD = re.compile(r"encoder\.lm_head\..*bias")


class LanguageModel:
    """A checkpoint of RoBERTa with its vocabulary; see :func:`load_language_model`."""

    def __init__(self, path: Path, option: str, device: str) -> None:
        checkpoint = Checkpoint(path)
        try:
            vocabulary = checkpoint.vocabulary
        except UsageError:
            raise UsageError(
                f"{option} {path}: put dict.txt and the files of its BPE beside it (encoder.json "
                "and vocab.bpe, sentencepiece.bpe.model or tokenizer.json)"
            ) from None
        biases = [w for name, w in checkpoint.weights.items() if _OF_A_HEAD.fullmatch(name)]
        self._name = f"{option} {path}"
        self._knows_words = not checkpoint.heads and any(bias.any() for bias in biases)
        self._bpe = vocabulary.encoder()
        self._model = checkpoint.model.to(device).eval()
        self._dictionary = checkpoint.dictionary
        self._room = int(self._model.max_positions()) - 2
        self._device = device

    def require_words(self) -> None:
        """Raise a UsageError unless its masked-LM head was trained, and the encoder with it."""
        if not self._knows_words:
            raise UsageError(
                f"{self._name} does not know which words fit: it was fine-tuned, or its masked-LM "
                "head was never trained; name a pretrained RoBERTa, such as roberta.base/model.pt"
            )

    def _symbols(self, text: str) -> list[int]:
        return [self._dictionary.index(each) for each in self._bpe.encode(text).split()]

    def _batches(self, inputs: Sequence[Sequence[int]]) -> list[Tensor]:
        words = self._dictionary
        rows = [torch.tensor([words.bos(), *each, words.eos()]) for each in inputs]
        return [
            collate_tokens(rows[i : i + _BATCH], words.pad()).to(self._device)
            for i in range(0, len(rows), _BATCH)
        ]

    @cached_property
    def _words(self) -> tuple[Tensor, list[str]]:
        """The symbols that are whole words of letters, as numbers and as text."""
        numbers, words = [], []
        for number, symbol in enumerate(self._dictionary.symbols):
            if number < self._dictionary.nspecial or symbol.startswith(("madeupword", "<mask>")):
                continue
            word = self._bpe.decode(symbol).strip()
            # Not a piece of one: with a blank before it, it is this symbol again.
            if word.isalpha() and self._bpe.encode(f" {word}").split() == [symbol]:
                numbers.append(number)
                words.append(word)
        return torch.tensor(numbers, device=self._device), words

    @torch.inference_mode()
    def fitting(
        self, editor: Editor, places: Sequence[Place], most: int, masked: bool
    ) -> Mapping[Place, list[str]]:
        """The words that the model finds most probable at each place, the best first.

        Args:
            most: how many.
            masked: whether the model does not see the word that stands there. It never does where
                that is several symbols.
        """
        if not places:
            return {}
        mask = self._dictionary.index("<mask>")
        inputs, gaps = [], []
        for place in places:
            before, after = editor.around(place)
            left = self._symbols(f" {before.rstrip()}") if before.strip() else []
            word = self._symbols(f" {editor.word(place)}")
            left = left[-(self._room // 2) :]
            right = self._symbols(after)[: self._room - 1 - len(left)]
            inputs.append([*left, *([mask] if masked or len(word) > 1 else word), *right])
            gaps.append(1 + len(left))
        numbers, words = self._words
        best = []
        for i, tokens in enumerate(self._batches(inputs)):
            at = torch.tensor(gaps[i * _BATCH : (i + 1) * _BATCH], device=self._device)
            chosen = torch.zeros_like(tokens, dtype=torch.bool)
            chosen[torch.arange(len(tokens)), at] = True
            scores = self._model(tokens, masked_tokens=chosen)[0]
            best += scores[:, numbers].topk(min(most, len(words))).indices.tolist()
        return {
            place: [written_like(editor.word(place), words[i]) for i in found]
            for place, found in zip(places, best, strict=True)
        }

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """The mean of the features over the symbols of each text, of length 1, ``N x D``."""
        found = []
        for tokens in self._batches([self._symbols(text)[: self._room] for text in texts]):
            features = self._model(tokens, features_only=True)[0].float()
            keep = tokens.ne(self._dictionary.pad()).unsqueeze(-1)
            found.append((features * keep).sum(1) / keep.sum(1))
        return torch.nn.functional.normalize(torch.cat(found), dim=1)


@cache
def load_language_model(path: Path, option: str, device: str) -> LanguageModel:
    """Read a checkpoint of fairseq's RoBERTa, which has its vocabulary beside it.

    Args:
        option: what named it, for errors.

    Raises:
        UsageError: it is no checkpoint, or its vocabulary is not there.
    """
    return LanguageModel(path, option, device)


def fitting_words(model: LanguageModel, most: int, masked: bool) -> Candidates:
    """Candidates by a masked language model; see :meth:`LanguageModel.fitting`.

    Raises:
        UsageError: its masked-LM head was not trained.
    """
    model.require_words()
    return lambda editor, places: model.fitting(editor, places, most, masked)
