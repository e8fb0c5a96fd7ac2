"""``--task alum_sequence_tagging``: a tag for every word."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.tasks import register_task

from alum_fairseq.data.record import CLASSES, RECORD, classes_of
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import SequenceTagging
from alum_fairseq.tasks.token_task import TokenTask, TokenTaskConfig


@dataclass
class AlumSequenceTaggingTaskConfig(TokenTaskConfig):
    """Options of the task."""

    num_classes: int = field(default=-1, metadata={"help": "number of tags"})


@register_task("alum_sequence_tagging", dataclass=AlumSequenceTaggingTaskConfig)
class AlumSequenceTaggingTask(TokenTask):
    """Trains on sentences that alum-prepare made ready; its checkpoints hold the tags' names."""

    problem_class = SequenceTagging

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        names = classes_of(Path(cfg.data))
        if names is not None:
            self.state.merge_state_dict({CLASSES: list(names)})

    @property
    def outputs(self) -> int:
        """One for each tag."""
        return self.cfg.num_classes

    @classmethod
    def check_setup(cls, cfg: Any) -> None:
        """Raise a UsageError unless the data have as many tags as the option says."""
        super().check_setup(cfg)
        if cfg.num_classes < 2:
            raise UsageError(f"--num-classes is {cfg.num_classes}: give the number of tags")
        data = Path(cfg.data)
        if (data / RECORD).is_file():
            tags = cls.problem_of(data).labels
            if len(tags) != cfg.num_classes:
                raise UsageError(
                    f"--num-classes is {cfg.num_classes}, but {data} has {len(tags)} tags: give "
                    f"--num-classes {len(tags)}"
                )
