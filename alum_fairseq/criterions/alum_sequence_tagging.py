"""``--criterion alum_sequence_tagging``: a tag for every word, with ALUM."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass

from fairseq.criterions import register_criterion

from alum_fairseq.criterions.options import AlumConfig
from alum_fairseq.criterions.token_criterion import TokenCriterion
from alum_fairseq.problems import SequenceTagging


@dataclass
class AlumSequenceTaggingConfig(AlumConfig):
    """ALUM's options."""


@register_criterion("alum_sequence_tagging", dataclass=AlumSequenceTaggingConfig)
class AlumSequenceTagging(TokenCriterion):
    """Cross entropy of the tags, plus the divergence of their distributions, a word at a time."""

    name = "alum_sequence_tagging"
    problem_class = SequenceTagging
