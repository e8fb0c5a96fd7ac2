"""``--criterion alum_sequence_tagging``: a tag for every word, with ALUM."""

from __future__ import annotations

from fairseq.criterions import register_criterion

from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.criterions.token_criterion import TokenCriterion
from alum_fairseq.problems import SequenceTagging


@register_criterion("alum_sequence_tagging", dataclass=AlumConfig)
class AlumSequenceTagging(TokenCriterion):
    """Cross entropy of the tags, plus the divergence of their distributions, a word at a time."""

    name = "alum_sequence_tagging"
    problem_class = SequenceTagging
