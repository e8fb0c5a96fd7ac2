"""``--task alum_span_prediction``: questions whose answers are spans of a context."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass

from fairseq.tasks import register_task

from alum_fairseq.problems import SpanPrediction
from alum_fairseq.tasks.token_task import TokenTask, TokenTaskConfig


@dataclass
class AlumSpanPredictionTaskConfig(TokenTaskConfig):
    """Options of the task."""


@register_task("alum_span_prediction", dataclass=AlumSpanPredictionTaskConfig)
class AlumSpanPredictionTask(TokenTask):
    """Trains on questions that alum-prepare made ready: SQuAD 1.1, 2.0, and what is like them."""

    problem_class = SpanPrediction
    outputs = 2
