"""A checkpoint with all that belongs to it: head, problem, labels, data, vocabulary and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from fairseq.data import Dictionary
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from alum_fairseq.checkpoints.model import load_model
from alum_fairseq.checkpoints.reading import (
    DEFAULT_HEAD,
    heads_of,
    load_state,
    settings_of,
    training_of,
)
from alum_fairseq.data.layout import Layout
from alum_fairseq.data.record import CLASSES, RECORD, VOCABULARY, DataRecord, classes_of
from alum_fairseq.data.vocabulary import DICTIONARY, Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.models.token_head import TOKEN_HEAD
from alum_fairseq.problems import (
    Classification,
    MultipleChoice,
    Regression,
    SequenceTagging,
    SpanPrediction,
    SupervisedProblem,
    TokenProblem,
)

# fairseq's tasks that train a head, and the option that names it.
_HEAD_OPTIONS = {
    "sentence_prediction": "classification_head_name",
    "sentence_ranking": "ranking_head_name",
}
# Those whose head is for every token.
_TOKEN_PROBLEMS = {kind.name: kind for kind in (SpanPrediction, SequenceTagging)}


class Checkpoint:
    """A checkpoint of fairseq's RoBERTa, and what it was trained with.

    The file is read at once, everything else when it is first asked for: only then is it an error
    that it is missing, or does not fit.

    Args:
        path: the checkpoint, trained by ``masked_lm``, ``sentence_prediction``,
            ``sentence_ranking`` or their ALUM counterparts.
        data: the folder that it was trained on (default: the one that it names, else its own, if
            that holds ``dict.txt``). Its dictionaries are read, ``alum-prepare.json`` and
            ``vocabulary/``, not the data.
        vocabulary: folder with ``dict.txt`` and the files of the BPE (default:
            ``data/vocabulary``, where alum-prepare puts it, else ``data``).
        head: the classification head (default: the one that was trained, or the only one).
        labels: the classes in the head's order (default: the checkpoint's own, or the data's).

    Attributes:
        path: of the file.
        options: of the model, as the checkpoint has them, defaults not filled in.
        settings: of task and criterion, likewise; the task's name under ``task``.
        heads: the classification heads by name, and how many outputs each has.
        training: the ``seconds`` and ``updates`` that it took, as fairseq noted them; or None.

    Raises:
        UsageError: the file is no checkpoint; every attribute raises it where something is missing
            or does not fit.
    """

    def __init__(
        self,
        path: Path | str,
        data: Path | str | None = None,
        vocabulary: Path | str | None = None,
        head: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._state = load_state(self.path)
        self.options, self.settings = settings_of(self._state, self.path)
        self.heads = heads_of(self._state["model"])
        self.training = training_of(self._state)
        self._data, self._vocabulary, self._head, self._labels = data, vocabulary, head, labels
        self._trained_on = str(self.settings.get("data") or "").split(":")[0]
        task_state = self._state.get("task_state")
        self._own_labels = task_state.get(CLASSES) if isinstance(task_state, dict) else None
        self._task = str(self.settings["task"]).removeprefix("alum_")
        # alum-convert's have the option alone.
        self._ranks = self._task == "sentence_ranking" or "ranking_head_name" in self.settings

    @cached_property
    def data(self) -> Path | None:
        """The folder of the data; None if it is not here."""
        if self._data is not None:
            if not Path(self._data).is_dir():
                raise UsageError(f"--data {self._data} is no folder")
            return Path(self._data)
        if self._trained_on not in ("", ".") and Path(self._trained_on).is_dir():
            return Path(self._trained_on)
        return self.path.parent if (self.path.parent / DICTIONARY).is_file() else None

    def _require_data(self) -> Path:
        if self.data is None:
            raise UsageError(
                f"{self.path} was trained on {self._trained_on or 'no data'}, which is not here: "
                "give --data, the folder of its dictionaries"
            )
        return self.data

    @cached_property
    def record(self) -> DataRecord | None:
        """What alum-prepare recorded of the data; None if they are not of its making."""
        known = self.data is not None and (self.data / RECORD).is_file()
        return DataRecord.load(self.data) if known else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The subword encoder and its dictionary."""
        if self._vocabulary is not None:
            return Vocabulary.load(Path(self._vocabulary))
        data = self._require_data()
        if (data / VOCABULARY).is_dir():
            return Vocabulary.load(data / VOCABULARY)
        if (data / DICTIONARY).is_file():
            vocabulary = Vocabulary.load(data)
            if vocabulary.bpe != "none":
                return vocabulary
        raise UsageError(
            f"{data} has no {VOCABULARY}, which alum-prepare makes, and does not say how its text "
            f"was cut into symbols: give --vocabulary, a folder with {DICTIONARY} and the files of "
            "the BPE (encoder.json and vocab.bpe, sentencepiece.bpe.model or tokenizer.json; "
            f"{DICTIONARY} alone where symbols are words)"
        )

    @cached_property
    def head(self) -> str | None:
        """The classification head; None if there is none."""
        name = self._head
        if name is None and self._task in _TOKEN_PROBLEMS:
            name = TOKEN_HEAD
        if name is None and self._task in _HEAD_OPTIONS:
            name = self.settings.get(_HEAD_OPTIONS[self._task], DEFAULT_HEAD)
        if not self.heads and self._head is None:
            return None
        if name is None and len(self.heads) == 1:
            return next(iter(self.heads))
        if name not in self.heads:
            which = "several heads" if name is None else f"no head {name}"
            known = ", ".join(self.heads) or "none"
            raise UsageError(f"{self.path} has {which}: give --head, one of {known}")
        return name

    @property
    def problem_class(self) -> type[SupervisedProblem]:
        """Which kind of problem the head was trained for."""
        if self._ranks:
            return MultipleChoice
        if self._task in _TOKEN_PROBLEMS:
            return _TOKEN_PROBLEMS[self._task]
        return Regression if self.settings.get("regression_target") else Classification

    @cached_property
    def _classes(self) -> int:
        count = self.settings.get("num_classes") if self._ranks else self.heads[self.head]
        if self._ranks and "num_classes" not in self.settings:  # transformers does not tell it
            if self.labels is None:
                raise UsageError(
                    f"{self.path} does not tell how many choices an example has: give --labels, a "
                    "name for each"
                )
            return len(self.labels)
        if type(count) is not int or count < 1:
            raise UsageError(f"{self.path}: its num_classes is {count!r:.100}: it must be a number")
        return count

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The classes by name, in the head's order; None if nothing says them."""
        if self._labels is not None:
            self._check_order(list(self._labels))
            return tuple(self._labels)
        if not self.problem_class.has_classes:
            return None
        own, of_data = self._own_labels, self.data_labels
        if own is None:
            return of_data
        if type(own) is not list or not all(isinstance(label, str) for label in own):
            raise UsageError(f"{self.path}: its {CLASSES} are {own!r:.100}, not a list of names")
        if of_data is not None and set(of_data) != set(own):
            raise UsageError(
                f"{self.path} has the classes {', '.join(own)}, {self.data} has "
                f"{', '.join(of_data)}: call them in the data as the model does, or give --labels, "
                "the data's names in the model's order"
            )
        return tuple(own)

    def _check_order(self, labels: list[str]) -> None:
        """Other names are welcome, but the same ones in another order would swap the answers."""
        own = self._own_labels
        if isinstance(own, list) and set(own) == set(labels) and own != labels:
            raise UsageError(
                f"--labels {' '.join(labels)}: {self.path} has them in the order "
                f"{' '.join(own)}: leave --labels out"
            )

    @cached_property
    def data_labels(self) -> tuple[str, ...] | None:
        """The classes by name, in the data's order; None if the data do not say them."""
        return None if self.data is None else classes_of(self.data)

    @cached_property
    def problem(self) -> SupervisedProblem:
        """What the head's logits mean; classes without names are numbered."""
        if self.head is None:
            raise UsageError(f"{self.path} has no classification head: it was not fine-tuned")
        kind, labels, count = self.problem_class, self.labels, self._classes
        if not kind.has_classes:
            if kind.categorical and labels is not None:
                raise UsageError(f"{self.path} has no labels: it answers with spans of a text")
            if count != 1 and not kind.categorical:
                raise UsageError(f"{self.path} predicts {count} numbers: alum-predict knows one")
            if labels is not None:
                raise UsageError(
                    f"{self.path} has no labels: it was trained for regression, not the "
                    f"{len(labels)} of --labels"
                )
        elif labels is None:
            labels = tuple(map(str, range(count)))
        elif len(labels) != count:
            if self._labels is None:
                where = self.data if self._own_labels is None else self.path
                raise UsageError(f"{where} has {len(labels)} labels, the head {count} classes")
            raise UsageError(f"{self.path} has {count}, not the {len(labels)} of --labels")
        elif len(set(labels)) < len(labels):
            raise UsageError(f"--labels {' '.join(labels)}: one of them comes twice")
        recorded = None if self.record is None else self.record.problem
        if isinstance(recorded, kind) and issubclass(kind, TokenProblem):
            return replace(recorded, labels=labels or ())
        return kind(labels or (), 1.0 if recorded is None else recorded.scale)

    def symbol(self, name: str, usual: int, symbols: int) -> int | None:
        """An option that is the number of one of so many symbols, or None; else ``usual``."""
        index = self.settings.get(name, usual)
        if index is not None and not (type(index) is int and 0 <= index < symbols):
            raise UsageError(
                f"{self.path}: its {name} is {index!r:.100}: it must be the number of a symbol, "
                f"from 0 to {symbols - 1}; name the data that it was trained on"
            )
        return index

    @cached_property
    def layout(self) -> Layout:
        """How texts become the model's input."""
        return Layout(
            self.problem,
            int(self.model.max_positions()),
            self.symbol("init_token", 0, len(self.dictionary)),
            self.symbol("separator_token", 2, len(self.dictionary)),
            self.settings.get("max_option_length") if self._ranks else None,
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """As they were read; once :attr:`model` is built, they are gone."""
        return self._state["model"]

    @cached_property
    def _built(self) -> tuple[nn.Module, FairseqTask]:
        data = self._require_data()
        reads_text = self._task in _HEAD_OPTIONS or self._task in _TOKEN_PROBLEMS
        if not (data / DICTIONARY).is_file() and not reads_text:
            data = data / "input0"  # a masked LM with a head reads dict.txt, wherever it lies
        built = load_model(self._state, self.path, data=str(data), load_checkpoint_heads=True)
        self._state.clear()  # the model has copies
        return built

    @property
    def model(self) -> nn.Module:
        """The model with its weights and heads, on the CPU, in evaluation mode."""
        return self._built[0]

    @property
    def task(self) -> FairseqTask:
        """fairseq's task that it was trained by, set up for the data."""
        return self._built[1]

    @property
    def dictionary(self) -> Dictionary:
        """The model's."""
        return self.task.source_dictionary
