"""``--task alum_span_prediction``: questions whose answers are spans of a context."""

from __future__ import annotations

from fairseq.tasks import register_task

from alum_fairseq.problems import SpanPrediction
from alum_fairseq.tasks.token_task import TokenTask, TokenTaskConfig


@register_task("alum_span_prediction", dataclass=TokenTaskConfig)
class AlumSpanPredictionTask(TokenTask):
    """Trains on questions that alum-prepare made ready: SQuAD 1.1, 2.0, and what is like them."""

    problem_class = SpanPrediction
    outputs = 2
