"""What ``--task`` gains: importing this package registers the ALUM tasks."""

from alum_fairseq.tasks import (  # noqa: F401
    alum_masked_lm,
    alum_sentence_prediction,
    alum_sentence_ranking,
    alum_sequence_tagging,
    alum_span_prediction,
)
