"""``--task alum_masked_lm``: fairseq's ``masked_lm`` with a schedule for the adversary."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from alum_fairseq.tasks.update_number import PassesUpdateNumber


@dataclass
class AlumMaskedLMConfig(MaskedLMConfig):
    """Options of ``masked_lm``."""


@register_task("alum_masked_lm", dataclass=AlumMaskedLMConfig)
class AlumMaskedLMTask(PassesUpdateNumber, MaskedLMTask):
    """``masked_lm``, whose criterion can follow a schedule."""
