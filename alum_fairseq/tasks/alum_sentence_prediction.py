"""``--task alum_sentence_prediction``: fine-tuning with a schedule for the adversary."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from fairseq.data import Dictionary
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import OmegaConf

from alum_fairseq.data.binarized import combined_splits, read_inputs, read_split
from alum_fairseq.data.record import CLASSES, classes_of
from alum_fairseq.data.vocabulary import class_names
from alum_fairseq.errors import UsageError
from alum_fairseq.tasks.alum_task import (
    AlumTask,
    AlumTaskConfig,
    check_dictionary,
    check_inputs,
    labels_of,
    require_labels,
)


@dataclass
class AlumSentencePredictionTaskConfig(AlumTaskConfig, SentencePredictionConfig):
    """Options of ``sentence_prediction``."""


@register_task("alum_sentence_prediction", dataclass=AlumSentencePredictionTaskConfig)
class AlumSentencePredictionTask(AlumTask, SentencePredictionTask):
    """``sentence_prediction``, whose criterion can follow a schedule.

    Its checkpoints hold the names of the classes.
    """

    def __init__(self, cfg: Any, data_dictionary: Dictionary, label_dictionary: Dictionary) -> None:
        super().__init__(cfg, data_dictionary, label_dictionary)
        if not cfg.regression_target:
            self.class_names = list(classes_of(Path(cfg.data)) or class_names(label_dictionary))
            self.state.merge_state_dict({CLASSES: self.class_names})

    @classmethod
    def check_setup(cls, cfg: Any) -> None:
        """Raise a UsageError unless options and dictionaries are there, and fit each other."""
        check_inputs(cfg)
        if cfg.regression_target:
            if cfg.num_classes < 1:
                raise UsageError(f"--num-classes is {cfg.num_classes}: for regression give 1")
            return
        if cfg.num_classes < 2:
            raise UsageError(
                f"--num-classes is {cfg.num_classes}: give the number of classes, 2 or more (for "
                "regression 1, with --regression-target)"
            )
        check_dictionary(Path(cfg.data) / "label")

    def check_data(self, split: str, epoch: int, combine: bool) -> Optional[list[Any]]:
        """Raise a UsageError unless a split is whole, and has a label for each example."""
        data, numbers = Path(self.cfg.data), []
        for part in combined_splits(data / "input0", split, combine):
            texts = read_inputs(data, part, len(self.source_dictionary))
            if texts and self.cfg.regression_target:
                numbers += self._numbers(data / "label", part, len(texts[0]))
            elif texts:
                self._check_classes(data / "label", part, len(texts[0]))
        alone = len(numbers) == 1 and split != self.cfg.alum_train_subset
        option = "criterion.report_pearson_and_spearman"
        if alone and OmegaConf.select(self.cfg._get_root(), option, default=False):
            raise UsageError(
                f"{split} has one example, which has no correlation: add examples, or leave out "
                "--report-pearson-and-spearman"
            )
        return numbers or None

    def _check_classes(self, folder: Path, split: str, examples: int) -> None:
        require_labels(folder / f"{split}.idx", split)
        dictionary = self.label_dictionary
        first = dictionary.nspecial
        names = class_names(dictionary)
        # Where nothing is trained, the checkpoint's head decides how many there may be.
        if len(names) > self.cfg.num_classes or (
            self._trains and len(names) < self.cfg.num_classes
        ):
            remedy = f"give --num-classes {len(names)}"
            if self._built_model is not None and not self._trains:
                remedy = "the model was trained for other classes"
            raise UsageError(
                f"--num-classes is {self.cfg.num_classes}, but {folder} has {len(names)} classes "
                f"({', '.join(names[:10])}): {remedy}"
            )
        labels = read_split(folder / split)
        if labels is None:
            return
        if len(labels) != examples:
            raise UsageError(
                f"{labels.prefix} has {len(labels):,} labels for {examples:,} examples; make the "
                "data again"
            )
        if not ((labels.sizes == 1) | (labels.sizes == 2)).all():  # with </s>, or without
            raise UsageError(f"{labels.prefix}: an example has more or less than one label")
        labels.check_tokens(first, first + self.cfg.num_classes, "labels", (dictionary.eos(),))

    def _numbers(self, folder: Path, split: str, examples: int) -> list[list[float]]:
        found = []
        for place, line in labels_of(folder, split, examples):
            try:
                numbers = [float(each) for each in line.split()]
            except ValueError:
                numbers = []
            if len(numbers) != self.cfg.num_classes or not all(map(math.isfinite, numbers)):
                raise UsageError(f"{place}: {line!r} is no label for --regression-target")
            found.append(numbers)
        return found
