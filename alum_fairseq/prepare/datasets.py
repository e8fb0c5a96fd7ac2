"""Data sets that are known by name: how the files that their authors publish are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alum_fairseq.data.tables import TableFormat
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_folder
from alum_fairseq.prepare.plan import TEST, TRAIN, VALID, Plan, Source
from alum_fairseq.problems import Classification, Regression, SupervisedProblem

# The order of the released roberta.large.mnli.
_NLI = Classification(("contradiction", "neutral", "entailment"))
_YES_NO = Classification(("0", "1"))
_ENTAILED_OR_NOT = Classification(("entailment", "not_entailment"))
_PAIR = ("sentence1", "sentence2")


def _files(pattern: str = "{}.tsv") -> dict[str, tuple[str, ...]]:
    """A file a split; ``{}`` in the pattern is the split's name, as the authors call it."""
    names = {TRAIN: "train", VALID: "dev", TEST: "test"}
    return {split: (pattern.replace("{}", name),) for split, name in names.items()}


@dataclass(frozen=True)
class KnownTask:
    """The layout of one data set.

    Attributes:
        name: what it is called.
        columns: the columns of the texts.
        label: the column of the label. Test sets whose labels are secret lack it.
        problem: what is to be predicted, with the classes in their order.
        files: for every split its files, each with alternatives after ``|``: the first that is
            there is taken.
        unlike_the_rest: for some splits, other columns, which have no label.
        header: see :class:`alum_fairseq.data.tables.TableFormat`.
        no_label, skip_malformed: see :class:`alum_fairseq.prepare.plan.Plan`.
    """

    name: str
    columns: tuple[str, ...]
    label: str
    problem: SupervisedProblem
    files: Mapping[str, tuple[str, ...]] = field(default_factory=_files)
    unlike_the_rest: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    header: bool | None = None
    no_label: str | None = None
    skip_malformed: bool = False


def _sick(name: str, label: str, problem: SupervisedProblem) -> KnownTask:
    """SemEval-2014 task 1 (Marelli et al. 2014)."""
    files = {
        TRAIN: ("train.tsv|SICK_train.txt",),
        VALID: ("dev.tsv|SICK_trial.txt",),
        TEST: ("test.tsv|SICK_test_annotated.txt",),
    }
    return KnownTask(name, ("sentence_A", "sentence_B"), label, problem, files)


def _anli(*rounds: str) -> KnownTask:
    """``anli_v1.0.zip`` (Nie et al. 2020), its README.

    One round, or several: together, and for evaluation each by itself as well.
    """
    one = len(rounds) == 1
    files = {}
    for split, name in {TRAIN: "train", VALID: "dev", TEST: "test"}.items():
        files[split] = tuple(f"{each}/{name}.jsonl" for each in rounds)
        if split != TRAIN and not one:
            files |= {f"{split}{i}": (file,) for i, file in enumerate(files[split], 1)}
    name, classes = f"ANLI-{rounds[0]}" if one else "ANLI", Classification(("c", "n", "e"))
    return KnownTask(name, ("context", "hypothesis"), "label", classes, files)


_ALL = (
    # The GLUE benchmark's zip (Wang et al. 2019). CoLA: test.tsv alone has a header. MRPC: as its
    # download script divides it. QQP: a few rows of train.tsv are broken in two. STS-B: divided by
    # 5 as in fairseq's examples/roberta/preprocess_GLUE_tasks.sh.
    KnownTask("CoLA", ("4",), "2", _YES_NO, unlike_the_rest={TEST: ("sentence",)}, header=False),
    KnownTask("SST-2", ("sentence",), "label", _YES_NO),
    KnownTask("MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO),
    KnownTask("QQP", ("question1", "question2"), "is_duplicate", _YES_NO, skip_malformed=True),
    KnownTask("STS-B", _PAIR, "score", Regression(scale=5.0)),
    KnownTask(
        "MNLI",
        _PAIR,
        "gold_label",
        _NLI,
        {
            TRAIN: ("train.tsv",),
            VALID: ("dev_matched.tsv",),
            VALID + "1": ("dev_mismatched.tsv",),
            TEST: ("test_matched.tsv",),
            TEST + "1": ("test_mismatched.tsv",),
        },
        no_label="-",
    ),
    KnownTask("QNLI", ("question", "sentence"), "label", _ENTAILED_OR_NOT),
    KnownTask("RTE", _PAIR, "label", _ENTAILED_OR_NOT),
    # snli_1.0.zip (Bowman et al. 2015), README: "-" where the annotators did not agree; train.tsv
    # and its like are those of the GLUE zip.
    KnownTask(
        "SNLI",
        _PAIR,
        "gold_label",
        _NLI,
        _files("snli_1.0_{}.jsonl|snli_1.0_{}.txt|{}.tsv"),
        no_label="-",
    ),
    # SciTailV1.1.zip (Khot et al. 2018), tsv_format/README.txt.
    KnownTask(
        "SciTail",
        ("1", "2"),
        "3",
        Classification(("neutral", "entails")),
        _files("tsv_format/scitail_1.0_{}.tsv|scitail_1.0_{}.tsv"),
        header=False,
    ),
    _anli("R1"),
    _anli("R2"),
    _anli("R3"),
    _anli("R1", "R2", "R3"),
    _sick(
        "SICK-E",
        "entailment_judgment",
        Classification(("CONTRADICTION", "NEUTRAL", "ENTAILMENT")),
    ),
    _sick("SICK-R", "relatedness_score", Regression(scale=5.0)),
)
KNOWN_TASKS: Mapping[str, KnownTask] = {task.name: task for task in _ALL}


def known_task(name: str) -> KnownTask:
    """Look a data set up, in capitals or not; a UsageError if it is not known."""
    for known, task in KNOWN_TASKS.items():
        if known.lower() == name.lower():
            return task
    raise UsageError(f"--task {name} is not known: it must be one of {', '.join(KNOWN_TASKS)}")


def plan_of(task: KnownTask, folder: Path) -> tuple[Plan, list[str]]:
    """What to prepare of a folder, and the splits that it lacks.

    Raises:
        UsageError: the training or the validation set is not there.
    """
    existing_folder(folder)
    sources, missing = {}, []
    for split, names in task.files.items():
        found = [_first_there(folder, alternatives) for alternatives in names]
        if None not in found:
            sources[split] = _source(task, split, tuple(found))
        elif split in (TRAIN, VALID):
            absent = names[found.index(None)].replace("|", " or ")
            raise UsageError(f"{folder} has no {absent}: --input must be {task.name}'s folder")
        else:
            missing.append(split)
    return Plan(task.problem, sources, task.name, task.no_label, task.skip_malformed), missing


def _first_there(folder: Path, alternatives: str) -> Path | None:
    paths = [folder / name for name in alternatives.split("|")]
    return next((path for path in paths if path.is_file()), None)


def _source(task: KnownTask, split: str, files: tuple[Path, ...]) -> Source:
    kind = "jsonl" if files[0].suffix == ".jsonl" else "tsv"
    if split in task.unlike_the_rest:
        return Source(files, TableFormat(kind), task.unlike_the_rest[split], None)
    header = None if kind == "jsonl" else task.header
    return Source(files, TableFormat(kind, header), task.columns, task.label)
