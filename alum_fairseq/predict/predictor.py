"""Text in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.data_utils import batch_by_size, collate_tokens
from torch import Tensor, nn

from alum_fairseq.checkpoints.reading import (
    classification_heads,
    config_of,
    load_model,
    load_state,
    require_symbol,
)
from alum_fairseq.data.encoding import ExampleEncoder
from alum_fairseq.data.record import RECORD, VOCABULARY, DataRecord
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError

MAX_TOKENS = 4096
_RANKING = ("sentence_ranking", "alum_sentence_ranking")
_PREDICTION = ("sentence_prediction", "alum_sentence_prediction")
_DEFAULT_HEAD = "sentence_classification_head"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one example.

    Attributes:
        label: the most probable class; None for regression.
        probabilities: of every class, in their order; empty for regression.
        value: the predicted number; None for classification.
    """

    label: str | None
    probabilities: dict[str, float]
    value: float | None = None


@dataclass(frozen=True)
class Layout:
    """How fairseq's task lays the texts of an example out as the model's input.

    Attributes:
        init_token: put before the first text, or None.
        separator_token: put before the second, or None.
        choices: whether the first text is a context, which follows each of the others.
        max_positions: the most tokens of an input.
        max_option_length: the most tokens of a candidate, the rest of which is cut off; or None.
    """

    init_token: int | None
    separator_token: int | None
    choices: bool
    max_positions: int
    max_option_length: int | None = None

    def inputs(self, symbols: Sequence[str], dictionary: Dictionary) -> list[Tensor]:
        """The model's inputs for one example: one, or one for every candidate."""
        texts = [
            dictionary.encode_line(text, add_if_not_exist=False, append_eos=True).long()
            for text in symbols
        ]
        if not self.choices:
            return [self._joined(*texts)]
        context, *candidates = texts
        return [self._joined(candidate, context) for candidate in candidates]

    def _joined(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        parts = [torch.cat([*_as_token(self.init_token), first])[: self.max_option_length]]
        if second is not None:
            parts += [*_as_token(self.separator_token), second]
        return torch.cat(parts)


def _as_token(index: int | None) -> list[Tensor]:
    return [] if index is None else [torch.tensor([index])]


class Predictor:
    """A fine-tuned model that reads text.

    Args:
        model: a RoBERTa of fairseq's, with the head.
        head: the head's name.
        dictionary: the model's.
        vocabulary: by what text becomes symbols of the dictionary.
        layout: how texts become the model's input.
        inputs: how many texts an example has; None: whatever the layout admits.
        labels: the classes, in the head's order; None for regression.
        scale: what the numbers of a regression were divided by in training.
        device: where to compute.
        data: the folder that the model was fine-tuned on, if it is known.

    Usually made by :meth:`load`::

        predictor = Predictor.load("finetuned/checkpoint_best.pt")
        predictor.predict(["A gripping film.", "Two hours too long."])
    """

    def __init__(
        self,
        model: nn.Module,
        head: str,
        dictionary: Dictionary,
        vocabulary: Vocabulary,
        layout: Layout,
        inputs: int | None,
        labels: Sequence[str] | None,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
        data: Path | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.head = head
        self.dictionary = dictionary
        self.vocabulary = vocabulary
        self.layout = layout
        self.labels = None if labels is None else list(labels)
        self.scale = scale
        self.device = torch.device(device)
        self.inputs = inputs
        self.data = data
        self.truncated = 0
        self._encoder = ExampleEncoder(vocabulary, layout.max_positions, layout.choices)

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
        """Load a checkpoint.

        Args:
            path: the checkpoint, fine-tuned by ``sentence_prediction``, ``sentence_ranking`` or
                their ALUM counterparts; or any other that holds a classification head.
            data: the folder that it was fine-tuned on (default: the one that it names). Its
                dictionaries are read, ``alum-prepare.json`` and ``vocabulary/``, not the data.
            vocabulary: folder with ``dict.txt`` and the files of the BPE (default:
                ``data/vocabulary``, where alum-prepare puts it).
            head: the head's name (default: the one that was trained, or the only one).
            labels: the classes in the head's order (default: those of the data).
            device: where to compute.

        Raises:
            UsageError: something is missing or does not fit; the message says what.
        """
        path = Path(path)
        state = load_state(path)
        heads = classification_heads(state)  # fairseq adds random ones to what it loads
        data = _data_folder(state, path, data)
        model, task, cfg = load_model(state, path, data=str(data), load_checkpoint_heads=True)
        kind = cfg.task._name
        record = DataRecord.load(data) if (data / RECORD).is_file() else None
        head = _head_of(heads, path, head or _trained_head(cfg))
        outputs = model.classification_heads[head].out_proj.out_features
        regression = bool(getattr(cfg.task, "regression_target", False))
        if regression and outputs != 1:
            raise UsageError(f"{path} predicts {outputs} numbers: alum-predict knows one")
        choices = kind in _RANKING
        if choices:
            outputs = cfg.task.num_classes
        if labels is None and not regression:
            labels = _labels_of(record, task if kind in _PREDICTION else None, outputs)
        if labels is not None and (regression or len(labels) != outputs):
            wanted = "no labels: it was trained for regression" if regression else f"{outputs}"
            raise UsageError(f"{path} has {wanted}, not the {len(labels)} of --labels")
        if labels is not None and len(set(labels)) < len(labels):
            raise UsageError(f"--labels {' '.join(labels)}: one of them comes twice")
        tokens = {"init_token": 0, "separator_token": 2}
        for name, usual in tokens.items():
            tokens[name] = getattr(cfg.task, name, usual)
            require_symbol(tokens[name], name, len(task.source_dictionary), path)
        return cls(
            model,
            head,
            task.source_dictionary,
            _vocabulary_of(vocabulary, data, task.source_dictionary),
            Layout(
                **tokens,
                choices=choices,
                max_positions=int(model.max_positions()),
                max_option_length=getattr(cfg.task, "max_option_length", None) if choices else None,
            ),
            None if record is None else record.inputs,
            labels,
            1.0 if record is None else record.scale,
            device,
            data,
        )

    def predict(
        self, examples: Sequence[str | Sequence[str]], max_tokens: int = MAX_TOKENS
    ) -> list[Prediction]:
        """Predict examples.

        Args:
            examples: each a text, a pair of texts, or for multiple choice the context and the
                candidates.
            max_tokens: the most tokens of a batch, padding included.

        Returns:
            A prediction for each, in their order.

        Raises:
            UsageError: an example has too few or too many texts.
        """
        outputs = self.logits(examples, max_tokens)
        if self.labels is None:
            return [Prediction(None, {}, self.scale * float(value)) for value in outputs[:, 0]]
        probabilities = outputs.softmax(dim=1)
        return [
            Prediction(self.labels[row.argmax()], dict(zip(self.labels, row.tolist(), strict=True)))
            for row in probabilities
        ]

    def logits(
        self, examples: Sequence[str | Sequence[str]], max_tokens: int = MAX_TOKENS
    ) -> Tensor:
        """What the head puts out: ``N x C`` in float32 on the CPU; see :meth:`predict`."""
        inputs = [self.inputs_of(example) for example in examples]
        flat = [tokens for each in inputs for tokens in each]
        outputs = torch.empty(len(flat), self._outputs())
        for batch in _batches(flat, max_tokens):
            outputs[batch] = self.score([flat[i] for i in batch]).float().cpu()
        return outputs.view(len(inputs), -1) if inputs else outputs

    def _outputs(self) -> int:
        return self.model.classification_heads[self.head].out_proj.out_features

    @torch.inference_mode()
    def score(self, inputs: Sequence[Tensor]) -> Tensor:
        """What the head puts out for one batch of token sequences."""
        tokens = collate_tokens(list(inputs), self.dictionary.pad()).to(self.device)
        return self.model(tokens, features_only=True, classification_head_name=self.head)[0]

    def inputs_of(self, example: str | Sequence[str]) -> list[Tensor]:
        """The token sequences that the model reads for an example: one, or one a candidate.

        Raises:
            UsageError: the example has too few or too many texts.
        """
        texts = [example] if isinstance(example, str) else list(example)
        self.check_inputs(len(texts))
        encoded = self._encoder(texts)
        self.truncated += encoded.truncated
        return self.layout.inputs(encoded.texts, self.dictionary)

    def check_inputs(self, texts: int) -> None:
        """Make sure that this is how many texts an example has.

        Raises:
            UsageError: it is not.
        """
        if self.layout.choices:
            wanted = 1 + len(self.labels or ())
            if texts != wanted:
                raise UsageError(
                    f"the model chooses among {wanted - 1} candidates: an example has {wanted} "
                    f"texts, the context first, not {texts}"
                )
        elif self.inputs is not None and texts != self.inputs:
            raise UsageError(f"an example has {texts} texts, of those trained on {self.inputs}")
        elif not 1 <= texts <= 2:
            raise UsageError(f"an example has 1 or 2 texts, not {texts}")


def _batches(inputs: Sequence[Tensor], max_tokens: int) -> Iterator[Any]:
    """Indices, the longest first: what does not fit into memory is seen at once."""
    lengths = np.array([len(tokens) for tokens in inputs], dtype=np.int64)
    if not len(lengths):
        return
    max_tokens = max(max_tokens, int(lengths.max()))
    order = np.argsort(-lengths, kind="stable")
    yield from batch_by_size(order, lengths.__getitem__, lengths[order], max_tokens=max_tokens)


def _data_folder(state: dict[str, Any], path: Path, data: Path | str | None) -> Path:
    """The folder that was given, or the one that the checkpoint was trained on."""
    if data is None:
        cfg = config_of(state, path)
        data = str(getattr(cfg.task, "data", None) or "").split(":")[0]
        if not data or not Path(data).is_dir():
            raise UsageError(
                f"{path} was trained on {data or 'no data'}, which is not here: give --data, the "
                "folder of its dictionaries"
            )
    elif not Path(data).is_dir():
        raise UsageError(f"--data {data} is no folder")
    return Path(data)


def _trained_head(cfg: Any) -> str | None:
    if cfg.task._name in _PREDICTION:
        return cfg.task.classification_head_name
    if cfg.task._name in _RANKING:
        return getattr(cfg.criterion, "ranking_head_name", _DEFAULT_HEAD)
    return None


def _head_of(heads: Sequence[str], path: Path, head: str | None) -> str:
    if not heads:
        raise UsageError(f"{path} has no classification head: it was not fine-tuned")
    if head is None and len(heads) == 1:
        return heads[0]
    if head not in heads:
        which = "several heads" if head is None else f"no head {head}"
        raise UsageError(f"{path} has {which}: give --head, one of {', '.join(heads)}")
    return head


def _labels_of(record: DataRecord | None, task: Any, classes: int) -> list[str]:
    """The classes: as they stood in the data, else as fairseq knows them, else numbers."""
    if record is not None and record.labels is not None:
        return record.labels
    if task is not None:
        labels = task.label_dictionary
        names = labels.symbols[labels.nspecial : labels.nspecial + classes]
        if len(names) == classes:
            return names
    return [str(i) for i in range(classes)]


def _vocabulary_of(folder: Path | str | None, data: Path, dictionary: Dictionary) -> Vocabulary:
    if folder is None:
        folder = data / VOCABULARY
        if not folder.is_dir():
            raise UsageError(
                f"{data} has no {VOCABULARY}, which alum-prepare makes: give --vocabulary, a "
                "folder with dict.txt and the files of the BPE"
            )
    vocabulary = Vocabulary.load(Path(folder))
    known = len(vocabulary.dictionary)
    if vocabulary.dictionary.symbols != dictionary.symbols[:known]:
        raise UsageError(f"{folder}/dict.txt is not the dictionary that the model was trained with")
    return vocabulary
