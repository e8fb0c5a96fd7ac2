"""``--task alum_sentence_prediction``: fine-tuning with a schedule for the adversary."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from alum_fairseq.tasks.alum_task import AlumTask, AlumTaskConfig


@dataclass
class AlumSentencePredictionTaskConfig(AlumTaskConfig, SentencePredictionConfig):
    """Options of ``sentence_prediction``."""


@register_task("alum_sentence_prediction", dataclass=AlumSentencePredictionTaskConfig)
class AlumSentencePredictionTask(AlumTask, SentencePredictionTask):
    """``sentence_prediction``, whose criterion can follow a schedule."""
