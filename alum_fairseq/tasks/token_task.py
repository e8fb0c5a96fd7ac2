"""What the tasks about tokens share: spans and tags, from the text that alum-prepare keeps."""

# No `from __future__ import annotations`: fairseq reads the types of the fields at run time.

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Optional

from fairseq.data import Dictionary
from fairseq.tasks import FairseqTask
from omegaconf import MISSING, OmegaConf, open_dict

from alum_fairseq.data.layout import Layout
from alum_fairseq.data.pieces import PieceDataset, PieceEncoder, pieces_of
from alum_fairseq.data.record import DataRecord, vocabulary_of
from alum_fairseq.data.texts import TEXTS, read_texts
from alum_fairseq.data.vocabulary import Vocabulary, load_dictionary
from alum_fairseq.errors import UsageError
from alum_fairseq.models.token_head import add_token_head
from alum_fairseq.problems import TokenProblem
from alum_fairseq.tasks.alum_task import AlumTask, AlumTaskConfig, check_symbols


@dataclass
class TokenTaskConfig(AlumTaskConfig):
    """Options of every task about tokens."""

    data: str = field(default=MISSING, metadata={"help": "path to data directory"})
    init_token: Optional[int] = field(
        default=None, metadata={"help": "token at the beginning of each input"}
    )
    separator_token: Optional[int] = field(
        default=None, metadata={"help": "token between two texts, beside </s>"}
    )
    max_positions: int = field(default=512, metadata={"help": "max tokens per input"})
    no_shuffle: bool = field(default=False, metadata={"help": "keep the order of the data"})


class _Tokens(FairseqTask):
    """Reads the text of a split, cuts it into inputs, and gives the model a head for tokens."""

    problem_class: ClassVar[type[TokenProblem]]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._dictionary = load_dictionary(vocabulary_of(Path(cfg.data)))
        self._dictionary.add_symbol("<mask>")

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> FairseqTask:
        """As fairseq calls it."""
        return cls(cfg)

    @property
    def source_dictionary(self) -> Dictionary:
        """The model's."""
        return self._dictionary

    @property
    def target_dictionary(self) -> None:
        """There is none."""

    def max_positions(self) -> int:
        """The most tokens of an input."""
        return self.cfg.max_positions

    @property
    def outputs(self) -> int:
        """How many numbers the head gives for a token."""
        raise NotImplementedError

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """fairseq's model, with a head for every token."""
        with open_dict(cfg) if OmegaConf.is_config(cfg) else contextlib.nullcontext():
            cfg.max_positions = self.cfg.max_positions
        model = super().build_model(cfg, from_checkpoint)
        add_token_head(model, self.outputs)
        return model

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> PieceDataset:
        """Read a split; fairseq combines ``train``, ``train1``, ..."""
        data = Path(self.cfg.data)
        problem = self.problem
        examples = []
        for part in _combined(data / TEXTS, split, combine):
            for row in read_texts(data, part, problem):
                if row.label is None:
                    raise UsageError(
                        f"{split} has no labels: leave it out of --valid-subset (alum-predict "
                        "needs none)"
                    )
                examples.append((row.texts, row.label))
        layout = Layout(
            problem, self.cfg.max_positions, self.cfg.init_token, self.cfg.separator_token
        )
        encoder = PieceEncoder(Vocabulary.load(vocabulary_of(data)), layout)
        pieces = list(pieces_of(examples, encoder))
        shuffle = split == self.cfg.alum_train_subset and not self.cfg.no_shuffle
        dataset = PieceDataset(pieces, problem, self._dictionary.pad(), shuffle)
        self.datasets[split] = dataset
        return dataset

    @property
    def problem(self) -> TokenProblem:
        """What the data are to be trained for."""
        return self.problem_of(Path(self.cfg.data))

    @classmethod
    def problem_of(cls, data: Path) -> TokenProblem:
        """The problem that data were prepared for; a UsageError if it is another one."""
        problem = DataRecord.load(data).problem
        if not isinstance(problem, cls.problem_class):
            raise UsageError(
                f"{data} was prepared for {problem.name}: this task is for {cls.problem_class.name}"
            )
        return problem


def _combined(folder: Path, split: str, combine: bool) -> Iterator[str]:
    yield split
    for number in count(1) if combine else ():
        if not (folder / f"{split}{number}.jsonl").is_file():
            return
        yield f"{split}{number}"


class TokenTask(AlumTask, _Tokens):
    """The base of the tasks about tokens."""

    @classmethod
    def check_setup(cls, cfg: Any) -> None:
        """Raise a UsageError unless there is a dictionary with the task's special tokens."""
        check_symbols(cfg, len(load_dictionary(vocabulary_of(Path(cfg.data)))) + 1)
