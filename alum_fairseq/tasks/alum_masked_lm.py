"""``--task alum_masked_lm``: fairseq's ``masked_lm`` with a schedule for the adversary."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq.utils import split_paths
from omegaconf import II

from alum_fairseq.data.binarized import combined_splits, read_split
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file
from alum_fairseq.tasks.alum_task import AlumTask, AlumTaskConfig, check_dictionary


@dataclass
class AlumMaskedLMConfig(AlumTaskConfig, MaskedLMConfig):
    """Options of ``masked_lm``."""

    # No option of its own, but what --bpe and its options resolve to. Were it named `bpe`,
    # fairseq-train would put the bare name there.
    word_bpe: Any = II("bpe")  # noqa: RUF009


@register_task("alum_masked_lm", dataclass=AlumMaskedLMConfig)
class AlumMaskedLMTask(AlumTask, MaskedLMTask):
    """``masked_lm``, whose criterion can follow a schedule, and whose whole-word masking works."""

    @classmethod
    def check_setup(cls, cfg: Any) -> None:
        """Raise a UsageError unless shares of tokens are shares, and there is a dictionary."""
        if not 0 < cfg.mask_prob < 1:
            raise UsageError(f"--mask-prob is {cfg.mask_prob}: it must be above 0 and below 1")
        others = cfg.leave_unmasked_prob, cfg.random_token_prob
        if min(others) < 0 or sum(others) > 1:
            raise UsageError(
                f"--leave-unmasked-prob is {others[0]} and --random-token-prob {others[1]}: they "
                "must be 0 or more, and together at most 1"
            )
        if cfg.tokens_per_sample < 3:
            raise UsageError(
                f"--tokens-per-sample is {cfg.tokens_per_sample}: it must be 3 or more"
            )
        check_dictionary(Path(split_paths(cfg.data)[0]))

    def check_data(self, split: str, epoch: int, combine: bool) -> None:
        """Raise a UsageError unless a split is whole, and every shard has its training data."""
        shards = [Path(path) for path in split_paths(self.cfg.data)]
        shard = shards[(epoch - 1) % len(shards)]
        for part in combined_splits(shard, split, combine):
            read_split(shard / part)
        if split == self.cfg.alum_train_subset:
            for other in shards:  # else a run fails when it comes to it, days later
                existing_file(other / f"{split}.idx")

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
