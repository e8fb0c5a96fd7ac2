"""``--criterion alum_sentence_ranking``: multiple choice with ALUM."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from omegaconf import II

from alum_fairseq.criterions.alum_criterion import AlumCriterion
from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.problems.multiple_choice import MultipleChoice
from alum_fairseq.problems.problem import Problem


@dataclass
class SentenceRankingConfig(FairseqDataclass):
    """Options of fairseq's ``sentence_ranking``, which has them as arguments of a parser."""

    ranking_head_name: str = field(
        default="sentence_classification_head",
        metadata={"help": "name of the ranking head to use"},
    )
    save_predictions: Optional[str] = field(
        default=None, metadata={"help": "file to save predictions to"}
    )
    num_classes: int = II("task.num_classes")


@dataclass
class AlumSentenceRankingConfig(AlumConfig, SentenceRankingConfig):
    """Options of ``sentence_ranking``, and ALUM's."""


class _Ranking(SentenceRankingCriterion):
    """``sentence_ranking``, built from a dataclass as fairseq's newer criteria are."""

    def __init__(self, cfg: AlumSentenceRankingConfig, task: Any) -> None:
        super().__init__(task, cfg.ranking_head_name, cfg.save_predictions, cfg.num_classes)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        super(SentenceRankingCriterion, cls).add_args(parser)  # the dataclass's

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log metrics of examples with labels alone: fairseq says that others have loss 0."""
        labelled = [log for log in logging_outputs if "ncorrect" in log]
        if labelled:
            super().reduce_metrics(labelled)


@register_criterion("alum_sentence_ranking", dataclass=AlumSentenceRankingConfig)
class AlumSentenceRanking(AlumCriterion, _Ranking):
    """``sentence_ranking`` plus the divergence of the distributions over the candidates.

    All candidates of an example are perturbed together: what is attacked is the choice.
    """

    name = "alum_sentence_ranking"
    stage = "finetuning"
    tasks = (SentenceRankingTask,)

    @classmethod
    def problem_of(cls, cfg: Any) -> Problem:
        """Multiple choice."""
        return MultipleChoice()

    @contextmanager
    def silently(self) -> Iterator[None]:
        """Inside, nothing is written to the file of ``--save-predictions``."""
        file, self.prediction_h = self.prediction_h, None
        try:
            yield
        finally:
            self.prediction_h = file
