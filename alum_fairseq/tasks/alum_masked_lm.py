"""``--task alum_masked_lm``: fairseq's ``masked_lm`` with a schedule for the adversary."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass
from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from omegaconf import II

from alum_fairseq.errors import UsageError
from alum_fairseq.tasks.alum_task import AlumTask, AlumTaskConfig


@dataclass
class AlumMaskedLMConfig(AlumTaskConfig, MaskedLMConfig):
    """Options of ``masked_lm``."""

    # No option of its own, but what --bpe and its options resolve to. Were it named `bpe`,
    # fairseq-train would put the bare name there.
    word_bpe: Any = II("bpe")  # noqa: RUF009


@register_task("alum_masked_lm", dataclass=AlumMaskedLMConfig)
class AlumMaskedLMTask(AlumTask, MaskedLMTask):
    """``masked_lm``, whose criterion can follow a schedule, and whose whole-word masking works."""

    @property
    def args(self) -> Any:
        """What fairseq's ``masked_lm`` builds the BPE of ``--mask-whole-words`` from.

        It reads ``self.args``, which its tasks lost when their options became dataclasses.

        Raises:
            UsageError: there is no ``--bpe``; fairseq would mask single tokens without a word.
        """
        if self.cfg.word_bpe is None:
            raise UsageError("--mask-whole-words needs --bpe, which tells where a word begins")
        return self.cfg.word_bpe
