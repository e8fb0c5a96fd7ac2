"""What ``--criterion`` gains: importing this package registers the ALUM criteria."""

from alum_fairseq.criterions import alum_mlm, alum_sentence_prediction  # noqa: F401
