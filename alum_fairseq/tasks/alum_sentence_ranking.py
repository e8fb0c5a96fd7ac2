"""``--task alum_sentence_ranking``: multiple choice, with a schedule for the adversary."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.sentence_prediction import SHORTEN_METHOD_CHOICES
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from omegaconf import II, MISSING, OmegaConf, open_dict

from alum_fairseq.data.binarized import combined_splits, read_inputs
from alum_fairseq.errors import UsageError
from alum_fairseq.tasks.alum_task import AlumTask, AlumTaskConfig, check_inputs, labels_of


@dataclass
class AlumSentenceRankingTaskConfig(AlumTaskConfig):
    """Options of fairseq's ``sentence_ranking``, which has them as arguments of a parser."""

    data: str = field(default=MISSING, metadata={"help": "path to data directory"})
    num_classes: int = field(default=-1, metadata={"help": "number of candidates to choose from"})
    init_token: Optional[int] = field(
        default=None, metadata={"help": "add token at the beginning of each batch item"}
    )
    separator_token: Optional[int] = field(
        default=None, metadata={"help": "add separator token between inputs"}
    )
    no_shuffle: bool = field(default=False, metadata={"help": "keep the order of the data"})
    shorten_method: SHORTEN_METHOD_CHOICES = field(
        default="none",
        metadata={"help": "if not none, shorten sequences that exceed --max-positions"},
    )
    shorten_data_split_list: str = field(
        default="",
        metadata={
            "help": "comma-separated list of dataset splits to apply shortening to, "
            'e.g., "train,valid" (default: all dataset splits)'
        },
    )
    max_option_length: Optional[int] = field(
        default=None, metadata={"help": "max length for each candidate"}
    )
    max_positions: int = field(default=512, metadata={"help": "max tokens per example"})

    ranking_head_name: str = II("criterion.ranking_head_name")
    seed: int = II("common.seed")
    dataset_impl: Optional[str] = II("dataset.dataset_impl")


class _SentenceRanking(SentenceRankingTask):
    """``sentence_ranking``, built from a dataclass as fairseq's newer tasks are."""

    def __init__(self, cfg: AlumSentenceRankingTaskConfig, dictionary: Any) -> None:
        super().__init__(cfg, dictionary)
        self.cfg = cfg  # what the older ones keep as `args`

    @classmethod
    def add_args(cls, parser: Any) -> None:
        super(SentenceRankingTask, cls).add_args(parser)  # the dataclass's

    @classmethod
    def setup_task(cls, cfg: AlumSentenceRankingTaskConfig, **kwargs: Any) -> FairseqTask:
        dictionary = cls.load_dictionary(cfg, str(Path(cfg.data) / "input0" / "dict.txt"))
        return cls(cfg, dictionary)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        with open_dict(cfg) if OmegaConf.is_config(cfg) else contextlib.nullcontext():
            cfg.max_positions = self.cfg.max_positions
            cfg.ranking_head_name = self.cfg.ranking_head_name
        return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        return FairseqTask.build_criterion(self, cfg, from_checkpoint)


@register_task("alum_sentence_ranking", dataclass=AlumSentenceRankingTaskConfig)
class AlumSentenceRankingTask(AlumTask, _SentenceRanking):
    """``sentence_ranking`` for the criterion ``alum_sentence_ranking``.

    fairseq's own takes no criterion but its own, and its options are invisible to
    ``fairseq-hydra-train``. Reads the same data: ``input0`` is the context, ``input1`` to
    ``inputN`` are the candidates, ``label/SPLIT.label`` holds the index of the right one.
    """

    @classmethod
    def check_setup(cls, cfg: Any) -> None:
        """Raise a UsageError unless options and data fit each other."""
        if cfg.num_classes < 2:
            raise UsageError(
                f"--num-classes is {cfg.num_classes}: give the number of candidates, 2 or more"
            )
        check_inputs(cfg)
        candidates = sum(path.is_dir() for path in Path(cfg.data).glob("input[1-9]*"))
        if candidates != cfg.num_classes:
            raise UsageError(
                f"--num-classes is {cfg.num_classes}, but {cfg.data} has {candidates} candidates "
                "(the folders input1, input2, ...)"
            )

    def check_data(self, split: str, epoch: int, combine: bool) -> Optional[list[Any]]:
        """Raise a UsageError unless a split is whole, and says which candidates are right.

        A test set may lack the labels where nothing is trained (``--save-predictions``).
        """
        data, classes, found = Path(self.cfg.data), self.cfg.num_classes, []
        unlabelled = split.startswith("test") and not (data / f"label/{split}.label").exists()
        for part in combined_splits(data / "input0", split, combine):
            texts = read_inputs(data, part, len(self.source_dictionary))
            if not texts or (unlabelled and not self._trains):
                continue
            for place, line in labels_of(data / "label", part, len(texts[0])):
                if not (line.strip().isdecimal() and int(line) < classes):
                    raise UsageError(
                        f"{place}: {line!r} is no candidate: they are from 0 to {classes - 1}"
                    )
                found.append(int(line))
        return found or None
