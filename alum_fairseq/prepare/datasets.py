"""Data sets that are known by name: how the files that their authors publish are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from alum_fairseq.data.tables import TableFormat
from alum_fairseq.errors import UsageError, did_you_mean
from alum_fairseq.files import existing_folder
from alum_fairseq.prepare.labels import matched
from alum_fairseq.prepare.plan import TEST, TRAIN, VALID, Plan, Source
from alum_fairseq.problems import (
    Classification,
    MultipleChoice,
    Regression,
    SequenceTagging,
    SpanPrediction,
    SupervisedProblem,
    TokenProblem,
)

# The order of the released roberta.large.mnli.
_NLI = Classification(("contradiction", "neutral", "entailment"))
_YES_NO = Classification(("0", "1"))
_ENTAILED_OR_NOT = Classification(("entailment", "not_entailment"))
_TRUE_OR_NOT = Classification(("false", "true"))
_ONE_OF_FOUR = MultipleChoice(("0", "1", "2", "3"))
_PAIR = ("sentence1", "sentence2")


def _files(pattern: str = "{}.tsv", valid: str = "dev") -> dict[str, tuple[str, ...]]:
    """A file a split; ``{}`` in the pattern is the split's name, as the authors call it."""
    names = {TRAIN: "train", VALID: valid, TEST: "test"}
    return {split: (pattern.replace("{}", name),) for split, name in names.items()}


def _known(
    name: str,
    columns: tuple[str, ...],
    label: str,
    problem: SupervisedProblem,
    files: Mapping[str, tuple[str, ...]] | None = None,
    header: bool | None = None,
    form: str | None = None,
    no_label: str | None = None,
    **more: Any,
) -> Plan:
    """The plan of one data set, whose files are relative to the folder that is published.

    A file may have alternatives after ``|``: the first that is there is taken. ``*`` stands for
    any name.
    """
    table = TableFormat(form, header, no_label=no_label)
    sources = {
        split: Source(tuple(map(Path, names)), table, columns, label, **more)
        for split, names in (files or _files()).items()
    }
    return Plan(problem, sources, name)


def _cola() -> Plan:
    """Of its files ``test.tsv`` alone has a header, and no labels."""
    plan = _known("CoLA", ("4",), "2", _YES_NO, header=False)
    test = Source((Path("test.tsv"),), TableFormat(), ("sentence",), None)
    return replace(plan, sources={**plan.sources, TEST: test})


def _sick(name: str, label: str, problem: SupervisedProblem) -> Plan:
    """SemEval-2014 task 1 (Marelli et al. 2014)."""
    files = {
        TRAIN: ("train.tsv|SICK_train.txt",),
        VALID: ("dev.tsv|SICK_trial.txt",),
        TEST: ("test.tsv|SICK_test_annotated.txt",),
    }
    return _known(name, ("sentence_A", "sentence_B"), label, problem, files)


def _anli(*rounds: str) -> Plan:
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
    return _known(name, ("context", "hypothesis"), "label", classes, files)


def _superglue(
    name: str, columns: tuple[str, ...], problem: SupervisedProblem, label: str = "label"
) -> Plan:
    """Wang et al. 2019, super.gluebenchmark.com: a folder a task."""
    return _known(name, columns, label, problem, _files("{}.jsonl", valid="val"))


def _race(level: str = "*") -> Plan:
    """RACE.tar.gz (Lai et al. 2017): a file a text; texts and questions as in fairseq's recipe.

    All of it, and its two levels each by itself as well; or one of them.
    """
    files = {
        split: (f"{name}/{level}/*.txt",)
        for split, name in {TRAIN: "train", VALID: "dev", TEST: "test"}.items()
    }
    if level == "*":
        files |= {TEST + "1": ("test/middle/*.txt",), TEST + "2": ("test/high/*.txt",)}
    return _known(
        "RACE" if level == "*" else f"RACE-{level}",
        ("article", *(f"questions.*+options.*.{i}" for i in range(4))),
        "answers.*",
        MultipleChoice(("A", "B", "C", "D")),
        files,
        form="jsonl",
    )


def _of_tokens(name: str, problem: TokenProblem, files: Mapping[str, str]) -> Plan:
    return _known(
        name,
        problem.columns,
        problem.label_column,
        problem,
        {split: (file,) for split, file in files.items()},
        form=problem.form,
    )


_ALL = (
    # The GLUE benchmark's zip (Wang et al. 2019). MRPC: as its download script divides it. QQP: a
    # few rows of train.tsv are broken in two. STS-B: divided by 5 as in fairseq's
    # examples/roberta/preprocess_GLUE_tasks.sh.
    _cola(),
    _known("SST-2", ("sentence",), "label", _YES_NO),
    _known("MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO),
    _known("QQP", ("question1", "question2"), "is_duplicate", _YES_NO, skip_malformed=True),
    _known("STS-B", _PAIR, "score", Regression(scale=5.0)),
    _known(
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
    _known("QNLI", ("question", "sentence"), "label", _ENTAILED_OR_NOT),
    _known("RTE", _PAIR, "label", _ENTAILED_OR_NOT),
    _known("WNLI", _PAIR, "label", _YES_NO),
    # Yes or no; of each pair, what the other is asked about comes first.
    _superglue("BoolQ", ("passage", "question"), _TRUE_OR_NOT),
    _superglue("CB", ("premise", "hypothesis"), _NLI),
    _superglue("SuperGLUE-RTE", ("premise", "hypothesis"), _ENTAILED_OR_NOT),
    # The word goes before each sentence.
    _superglue("WiC", ("word+sentence1", "word+sentence2"), _TRUE_OR_NOT),
    # Whether an answer is right; there may be several to a question.
    _superglue(
        "MultiRC",
        (
            "passage.text",
            "passage.questions.*.question+passage.questions.*.answers.*.text",
        ),
        _YES_NO,
        "passage.questions.*.answers.*.label",
    ),
    # The question is one word, cause or effect, and goes before each choice.
    _superglue(
        "COPA", ("premise", "question+choice1", "question+choice2"), MultipleChoice(("0", "1"))
    ),
    # rowanzellers.com/hellaswag (Zellers et al. 2019).
    _known(
        "HellaSwag",
        ("ctx_a", *(f"ctx_b+endings.{i}" for i in range(4))),
        "label",
        _ONE_OF_FOUR,
        _files("hellaswag_{}.jsonl", valid="val"),
    ),
    # github.com/rowanz/swagaf, data/ (Zellers et al. 2018).
    _known(
        "SWAG",
        ("sent1", *(f"sent2+ending{i}" for i in range(4))),
        "label",
        _ONE_OF_FOUR,
        _files("{}.csv", valid="val"),
    ),
    _race(),
    _race("middle"),
    _race("high"),
    # tau-nlp.org/commonsenseqa (Talmor et al. 2019), the random split.
    _known(
        "CommonsenseQA",
        ("question.stem", *(f"question.choices.{i}.text" for i in range(5))),
        "answerKey",
        MultipleChoice(("A", "B", "C", "D", "E")),
        {
            TRAIN: ("train_rand_split.jsonl",),
            VALID: ("dev_rand_split.jsonl",),
            TEST: ("test_rand_split_no_answers.jsonl",),
        },
    ),
    # yonatanbisk.com/piqa (Bisk et al. 2020); dev of its older archive, physicaliqa-train-dev.zip.
    _known(
        "PIQA",
        ("goal", "sol1", "sol2"),
        "label",
        MultipleChoice(("0", "1")),
        {
            TRAIN: ("train.jsonl",),
            VALID: ("valid.jsonl|dev.jsonl",),
            TEST: ("tests.jsonl|test.jsonl",),
        },
        label_file="{}-labels.lst",
    ),
    # snli_1.0.zip (Bowman et al. 2015), README: "-" where the annotators did not agree; train.tsv
    # and its like are those of the GLUE zip.
    _known(
        "SNLI",
        _PAIR,
        "gold_label",
        _NLI,
        _files("snli_1.0_{}.jsonl|snli_1.0_{}.txt|{}.tsv"),
        no_label="-",
    ),
    # nli_fever.zip, of the authors of ANLI, read as in their src/dataset_tools: the claim is the
    # hypothesis; the labels of dev and test are hidden.
    _known(
        "FEVER-NLI",
        ("context", "query"),
        "label",
        _NLI,
        {
            TRAIN: ("train_fitems.jsonl",),
            TEST: ("dev_fitems.jsonl",),
            TEST + "1": ("test_fitems.jsonl",),
        },
        no_label="hidden",
        names={
            "SUPPORTS": "entailment",
            "REFUTES": "contradiction",
            "NOT ENOUGH INFO": "neutral",
        },
    ),
    # SciTailV1.1.zip (Khot et al. 2018), tsv_format/README.txt.
    _known(
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
    # rajpurkar.github.io/SQuAD-explorer; of both the test set is hidden.
    _of_tokens("SQuAD1.1", SpanPrediction(), {TRAIN: "train-v1.1.json", VALID: "dev-v1.1.json"}),
    _of_tokens("SQuAD2.0", SpanPrediction(), {TRAIN: "train-v2.0.json", VALID: "dev-v2.0.json"}),
    # Tjong Kim Sang and De Meulder 2003; its last column has the entities, in IOB1.
    _of_tokens(
        "CoNLL-2003",
        SequenceTagging(),
        {TRAIN: "eng.train|train.txt", VALID: "eng.testa|valid.txt", TEST: "eng.testb|test.txt"},
    ),
    # github.com/leondz/emerging_entities_17 (Derczynski et al. 2017).
    _of_tokens(
        "WNUT-17",
        SequenceTagging(),
        {
            TRAIN: "wnut17train.conll",
            VALID: "emerging.dev.conll",
            TEST: "emerging.test.annotated",
        },
    ),
)
KNOWN_TASKS: Mapping[str, Plan] = {str(plan.task): plan for plan in _ALL}


def known_task(name: str) -> Plan:
    """Look a data set up, in capitals or not; a UsageError if it is not known."""
    for known, plan in KNOWN_TASKS.items():
        if known.lower() == name.lower():
            return plan
    hint = did_you_mean(name, KNOWN_TASKS)
    raise UsageError(
        f"--task {name} is not known: it must be one of {', '.join(KNOWN_TASKS)}{hint}"
    )


def together(plans: Sequence[Plan]) -> Plan:
    """One plan of several data sets: trained on all, each measured by itself.

    Raises:
        UsageError: they are not of one kind, or do not have the same classes.
    """
    first, *others = plans
    sources, also, name = dict(first.sources), list(first.also), first.task
    for other in others:
        texts = [len(plan.sources[TRAIN].columns) for plan in (first, other)]
        if type(first.problem) is not type(other.problem) or texts[0] != texts[1]:
            raise UsageError(f"--task {first.task} {other.task}: these are not of one kind")
        labels = dict.fromkeys(other.problem.labels, f"--task {other.task}")
        called = matched(labels, first.problem.labels, str(first.task))
        for split, source in other.sources.items():
            names = {own: called.get(std, std) for own, std in source.names.items()}
            source = replace(source, names=called | names)
            if split == TRAIN:
                also.append(source)
            else:
                kind = VALID if split.startswith(VALID) else TEST
                number = sum(each.startswith(kind) for each in sources)
                sources[f"{kind}{number or ''}"] = source
        name = f"{name}+{other.task}"
    return replace(first, sources=sources, also=tuple(also), task=name)


def in_folder(plan: Plan, folder: Path) -> tuple[Plan, list[str]]:
    """The plan of a known data set for the files of a folder, and the splits that this lacks.

    Raises:
        UsageError: the training or the validation set is not there.
    """
    existing_folder(folder)
    sources, missing = {}, []
    for split, source in plan.sources.items():
        found = [_first_there(folder, str(alternatives)) for alternatives in source.files]
        if all(found):
            files = tuple(chain.from_iterable(found))
            of_suffix = {".jsonl": "jsonl", ".csv": "csv"}.get(files[0].suffix, "tsv")
            table = replace(source.table, format=source.table.format or of_suffix)
            sources[split] = replace(source, files=files, table=table)
        elif split in (TRAIN, VALID):
            absent = str(source.files[found.index([])]).replace("|", " or ")
            raise UsageError(f"{folder} has no {absent}: --input must be {plan.task}'s folder")
        else:
            missing.append(split)
    return replace(plan, sources=sources), missing


def _first_there(folder: Path, alternatives: str) -> list[Path]:
    found = (sorted(folder.glob(name)) for name in alternatives.split("|"))
    return next((paths for paths in found if paths and paths[0].is_file()), [])
