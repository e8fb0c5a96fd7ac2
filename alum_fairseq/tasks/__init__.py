"""What ``--task`` gains: importing this package registers the ALUM tasks."""

from alum_fairseq.tasks import alum_masked_lm, alum_sentence_prediction  # noqa: F401
