"""``--criterion alum_span_prediction``: questions whose answers are spans, with ALUM."""

from __future__ import annotations

from fairseq.criterions import register_criterion

from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.criterions.token_criterion import TokenCriterion
from alum_fairseq.problems import SpanPrediction


@register_criterion("alum_span_prediction", dataclass=AlumConfig)
class AlumSpanPrediction(TokenCriterion):
    """Cross entropy of where the answer begins and ends, plus the divergence of either."""

    name = "alum_span_prediction"
    problem_class = SpanPrediction
