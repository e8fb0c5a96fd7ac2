"""Architectures that fairseq gets to know by ``--arch``."""

from alum_fairseq.models import alum_roberta  # noqa: F401
