"""What ``--criterion`` gains: importing this package registers the ALUM criteria."""

from alum_fairseq.criterions import (  # noqa: F401
    alum_mlm,
    alum_sentence_prediction,
    alum_sentence_ranking,
    alum_sequence_tagging,
    alum_span_prediction,
)
