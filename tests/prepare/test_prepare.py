"""``alum-prepare``: what fairseq's own tasks read of what was made is what stood in the table."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask
from hypothesis import given
from hypothesis import strategies as st
from support.places import ROOT
from support.tools import run_tool

from alum_fairseq import UsageError
from alum_fairseq.data.encoding import ExampleEncoder, truncate_longest_first
from alum_fairseq.data.record import DataRecord
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.prepare.command import main
from alum_fairseq.prepare.labels import in_order
from alum_fairseq.problems import (
    Classification,
    MultipleChoice,
    Regression,
    SupervisedProblem,
)

SHARED = ROOT.parent / "shared" / "data"
WORDS = [*"abcdefghij", "good", "bad", "the", "film", "was", "is"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary whose symbols are words."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    return folder


@pytest.fixture
def run(words: Path, tmp_path: Path) -> Callable[..., DataRecord]:
    """Runs the command on files of the test's folder; returns the record of ``data``."""

    def call(*arguments: Any, vocabulary: Path = words, output: str = "data") -> DataRecord:
        options = ["--vocabulary", vocabulary, "--output", tmp_path / output, "--workers", 1]
        assert main([str(word) for word in (*arguments, *options)]) == 0
        return DataRecord.load(tmp_path / output)

    return call


@pytest.fixture
def refused(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must fail and leave nothing behind; returns its last line."""

    def call(*arguments: Any, vocabulary: Path = words) -> str:
        options = ["--vocabulary", vocabulary, "--output", tmp_path / "data", "--workers", 1]
        before = set(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main([str(word) for word in (*arguments, *options)]) == 2
        assert set(tmp_path.rglob("*")) == before
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()[-1]

    return call


def own(folder: Path, *more: Any, columns: tuple[str, ...] = ("1",), label: str = "2") -> list[Any]:
    return ["--train", folder / "train.tsv", "--columns", *columns, "--label", label, *more]


def task_of(folder: Path) -> SentencePredictionTask:
    record = DataRecord.load(folder)
    return SentencePredictionTask.setup_task(
        SentencePredictionConfig(
            data=str(folder),
            num_classes=len(record.problem.labels) or 1,
            init_token=0,
            separator_token=2,
            no_shuffle=True,
            max_positions=record.max_positions,
            regression_target=record.problem.name == "regression",
            seed=1,
        )
    )


def examples_of(folder: Path, split: str) -> Iterator[tuple[list[str], str | float | None]]:
    """Texts and labels of a split, by fairseq's task and the vocabulary that was copied."""
    record, task = DataRecord.load(folder), task_of(folder)
    bpe = Vocabulary.load(folder / "vocabulary").encoder()
    dataset = task.load_dataset(split)
    for i in range(len(dataset)):
        example = dataset[i]
        tokens = example["net_input.src_tokens"]
        text = task.dictionary.string(tokens, include_eos=True).strip()
        assert tokens[0] == task.dictionary.bos()
        assert text.endswith("</s>")
        inputs = text.removesuffix("</s>").removeprefix("<s>").split("</s> </s>")
        texts = [bpe.decode(part.removeprefix("<s>").strip()) for part in inputs]
        assert len(texts) == record.inputs
        label = example.get("target")
        if label is not None and record.problem.name == "classification":
            label = record.problem.labels[int(label)]
        yield texts, label if label is None or isinstance(label, str) else float(label[0])


# The layouts that are known by name: small files of each, and every split's texts and labels.

GLUE_MNLI = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
]
SNLI_TXT = [
    "gold_label",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
    "captionID",
    "pairID",
    "label1",
    "label2",
    "label3",
    "label4",
    "label5",
]
STS = [
    "index",
    "genre",
    "filename",
    "year",
    "old_index",
    "source1",
    "source2",
    "sentence1",
    "sentence2",
]
SICK = ["pair_ID", "sentence_A", "sentence_B", "relatedness_score", "entailment_judgment"]
FIVE = ["label1", "label2", "label3", "label4", "label5", "gold_label"]


def tsv(header: list[str] | None, *rows: dict[str, str] | list[str]) -> str:
    """A table; rows by the names of their columns, the others being '_'."""
    lines = [] if header is None else [header]
    lines += [row if isinstance(row, list) else [row.get(n, "_") for n in header] for row in rows]
    return "".join("\t".join(line) + "\n" for line in lines)


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps({"uid": "x", "extra": [1], **row}) + "\n" for row in rows)


def pairs(one: str, two: str, *labels: str | None, label: str = "label") -> list[dict[str, str]]:
    """Rows with the texts 'a b' and 'c', and these labels."""
    return [{one: "a b", two: "c"} | ({} if x is None else {label: x}) for x in labels]


def of_pairs(*labels: Any) -> list[tuple[list[str], Any]]:
    return [(["a b", "c"], label) for label in labels]


def mnli(columns: list[str], *labels: str) -> str:
    return tsv(columns, *pairs("sentence1", "sentence2", *labels, label="gold_label"))


ONE, TWO = [["good film"], ["bad"]], ["good film", "bad"]
NLI3 = ("contradiction", "entailment", "neutral")
LAYOUTS: dict[str, tuple[dict[str, str], dict[str, list[Any]]]] = {
    "CoLA": (
        {
            "train.tsv": tsv(None, ["gj04", "1", "", "good film"], ["gj04", "0", "*", "bad"]),
            "dev.tsv": tsv(None, ["gj04", "0", "*", "good film"]),
            "test.tsv": tsv(["index", "sentence"], ["0", "good film"], ["1", "bad"]),
        },
        {
            "train": [(["good film"], "1"), (["bad"], "0")],
            "valid": [(["good film"], "0")],
            "test": [(["good film"], None), (["bad"], None)],
        },
    ),
    "SST-2": (
        {
            "train.tsv": tsv(["sentence", "label"], ["good film ", "1"], ["bad", "0"]),
            "dev.tsv": tsv(["sentence", "label"], ["bad", "0"]),
            "test.tsv": tsv(["index", "sentence"], ["0", "good film"]),
        },
        {
            "train": [(["good film"], "1"), (["bad"], "0")],
            "valid": [(["bad"], "0")],
            "test": [(["good film"], None)],
        },
    ),
    "MRPC": (
        {
            # With the byte order mark of the original, which GLUE's script leaves there.
            "train.tsv": "\ufeff"
            + tsv(
                ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
                *pairs("#1 String", "#2 String", "1", "0", label="Quality"),
            ),
            "dev.tsv": tsv(
                ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
                *pairs("#1 String", "#2 String", "0", label="Quality"),
            ),
            "test.tsv": tsv(
                ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"],
                *pairs("#1 String", "#2 String", None),
            ),
        },
        {"train": of_pairs("1", "0"), "valid": of_pairs("0"), "test": of_pairs(None)},
    ),
    "QQP": (
        {
            "train.tsv": tsv(
                ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
                *pairs("question1", "question2", "1", label="is_duplicate"),
                ["1", "2", "3", "a question that is broken"],
                ["in two", "0"],
                *pairs("question1", "question2", "0", label="is_duplicate"),
            ),
            "dev.tsv": tsv(
                ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
                *pairs("question1", "question2", "0", label="is_duplicate"),
            ),
            "test.tsv": tsv(
                ["id", "question1", "question2"], *pairs("question1", "question2", None)
            ),
        },
        {"train": of_pairs("1", "0"), "valid": of_pairs("0"), "test": of_pairs(None)},
    ),
    "STS-B": (
        {
            "train.tsv": tsv(
                [*STS, "score"], *pairs("sentence1", "sentence2", "5.000", "3.8", label="score")
            ),
            "dev.tsv": tsv(
                [*STS, "score"], *pairs("sentence1", "sentence2", "0.000", label="score")
            ),
            "test.tsv": tsv(STS, *pairs("sentence1", "sentence2", None)),
        },
        {"train": of_pairs(1.0, 0.76), "valid": of_pairs(0.0), "test": of_pairs(None)},
    ),
    "MNLI": (
        {
            "train.tsv": mnli([*GLUE_MNLI, "label1", "gold_label"], *NLI3, "-"),
            "dev_matched.tsv": mnli([*GLUE_MNLI, *FIVE], "neutral"),
            "dev_mismatched.tsv": mnli([*GLUE_MNLI, *FIVE], "entailment"),
            "test_matched.tsv": mnli(GLUE_MNLI, ""),
            "test_mismatched.tsv": mnli(GLUE_MNLI, "", ""),
        },
        {
            "train": of_pairs(*NLI3),
            "valid": of_pairs("neutral"),
            "valid1": of_pairs("entailment"),
            "test": of_pairs(None),
            "test1": of_pairs(None, None),
        },
    ),
    "QNLI": (
        {
            "train.tsv": tsv(
                ["index", "question", "sentence", "label"],
                *pairs("question", "sentence", "entailment", "not_entailment"),
            ),
            "dev.tsv": tsv(
                ["index", "question", "sentence", "label"],
                *pairs("question", "sentence", "not_entailment"),
            ),
            "test.tsv": tsv(
                ["index", "question", "sentence"], *pairs("question", "sentence", None)
            ),
        },
        {
            "train": of_pairs("entailment", "not_entailment"),
            "valid": of_pairs("not_entailment"),
            "test": of_pairs(None),
        },
    ),
    "RTE": (
        {
            "train.tsv": tsv(
                ["index", "sentence1", "sentence2", "label"],
                *pairs("sentence1", "sentence2", "not_entailment", "entailment"),
            ),
            "dev.tsv": tsv(
                ["index", "sentence1", "sentence2", "label"],
                *pairs("sentence1", "sentence2", "entailment"),
            ),
            "test.tsv": tsv(
                ["index", "sentence1", "sentence2"], *pairs("sentence1", "sentence2", None)
            ),
        },
        {
            "train": of_pairs("not_entailment", "entailment"),
            "valid": of_pairs("entailment"),
            "test": of_pairs(None),
        },
    ),
    "SNLI": (
        {
            "snli_1.0_train.jsonl": jsonl(
                *pairs("sentence1", "sentence2", *NLI3, "-", label="gold_label")
            ),
            "snli_1.0_dev.jsonl": jsonl(
                *pairs("sentence1", "sentence2", "-", "neutral", label="gold_label")
            ),
            "snli_1.0_test.jsonl": jsonl(
                *pairs("sentence1", "sentence2", "entailment", "-", label="gold_label")
            ),
        },
        {
            "train": of_pairs(*NLI3),
            "valid": of_pairs("neutral"),
            "test": of_pairs("entailment"),
        },
    ),
    "SciTail": (
        {
            "tsv_format/scitail_1.0_train.tsv": tsv(
                None, ["a b", "c", "entails"], ["a b", "c", "neutral"]
            ),
            "tsv_format/scitail_1.0_dev.tsv": tsv(None, ["a b", "c", "neutral"]),
            "tsv_format/scitail_1.0_test.tsv": tsv(None, ["a b", "c", "entails"]),
        },
        {
            "train": of_pairs("entails", "neutral"),
            "valid": of_pairs("neutral"),
            "test": of_pairs("entails"),
        },
    ),
    "ANLI": (
        {
            f"R{i}/{name}.jsonl": jsonl(*pairs("context", "hypothesis", *labels))
            for i in (1, 2, 3)
            for name, labels in {"train": "cne", "dev": "cne"[-i], "test": "cne"[i - 1]}.items()
        },
        {
            "train": of_pairs(*"cnecnecne"),
            "valid": of_pairs(*"enc"),
            "valid1": of_pairs("e"),
            "valid2": of_pairs("n"),
            "valid3": of_pairs("c"),
            "test": of_pairs(*"cne"),
            "test1": of_pairs("c"),
            "test2": of_pairs("n"),
            "test3": of_pairs("e"),
        },
    ),
}
SICK_ROWS = [
    ["1", "a b", "c", "4.5", "NEUTRAL"],
    ["2", "a b", "c", "1", "ENTAILMENT"],
    ["3", "a b", "c", "3", "CONTRADICTION"],
]
SICK_FILES = {f"{name}.tsv": tsv(SICK, *SICK_ROWS) for name in ("train", "dev", "test")}
SPLITS = ("train", "valid", "test")
LAYOUTS["SICK-E"] = SICK_FILES, {s: of_pairs(*(row[4] for row in SICK_ROWS)) for s in SPLITS}
LAYOUTS["SICK-R"] = SICK_FILES, {s: of_pairs(0.9, 0.2, 0.6) for s in SPLITS}
for number in "123":
    LAYOUTS[f"ANLI-R{number}"] = (
        LAYOUTS["ANLI"][0],
        {
            "train": of_pairs(*"cne"),
            "valid": LAYOUTS["ANLI"][1][f"valid{number}"],
            "test": LAYOUTS["ANLI"][1][f"test{number}"],
        },
    )


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def check(folder: Path, expected: dict[str, list[Any]]) -> None:
    """Make sure that fairseq reads these examples, and that the record counts them."""
    record = DataRecord.load(folder)
    assert list(record.splits) == list(expected)
    for split, examples in expected.items():
        found = list(examples_of(folder, split))
        assert [texts for texts, _ in found] == [texts for texts, _ in examples]
        labels = [label for _, label in examples]
        if labels[0] is None or isinstance(labels[0], str):
            assert [label for _, label in found] == labels
        else:
            assert [label for _, label in found] == pytest.approx(labels)
        counted = record.splits[split]
        assert counted.rows == len(examples)
        assert counted.labelled is (labels[0] is not None)
        classes = record.problem.labels if counted.labelled else []
        assert counted.label_counts == {name: labels.count(name) for name in classes}


@pytest.mark.parametrize(
    "name",
    LAYOUTS,
)
def test_known_layouts(name: str, run: Any, tmp_path: Path) -> None:
    files, expected = LAYOUTS[name]
    record = run("--task", name.lower(), "--input", write(tmp_path / "raw", files))
    check(tmp_path / "data", expected)
    assert record.task == name
    dropped = {"QQP": {"train": 2}, "MNLI": {"train": 1}}.get(name, {})
    if name == "SNLI":
        dropped = dict.fromkeys(SPLITS, 1)
    assert {n: s.dropped for n, s in record.splits.items() if s.dropped} == dropped


def test_other_files_of_snli(run: Any, tmp_path: Path) -> None:
    names = {"train": [*NLI3, "-"], "dev": ["neutral"], "test": ["entailment", "-"]}
    expected = LAYOUTS["SNLI"][1]
    header = ["index", *SNLI_TXT[7:9], *SNLI_TXT[1:7], "label1", "gold_label"]  # as in GLUE's zip
    for pattern, columns in (("snli_1.0_{}.txt", SNLI_TXT), ("{}.tsv", header)):
        files = {pattern.replace("{}", name): mnli(columns, *x) for name, x in names.items()}
        kind = pattern[-3:]
        run("--task", "SNLI", "--input", write(tmp_path / kind, files), output=f"data-{kind}")
        check(tmp_path / f"data-{kind}", expected)


def test_original_files_of_sick(run: Any, tmp_path: Path) -> None:
    names = {"SICK_train": "train", "SICK_trial": "dev", "SICK_test_annotated": "test"}
    files = {f"{new}.txt": SICK_FILES[f"{old}.tsv"] for new, old in names.items()}
    run("--task", "SICK-E", "--input", write(tmp_path / "raw", files))
    check(tmp_path / "data", LAYOUTS["SICK-E"][1])


def test_known_tasks_that_are_not_as_they_should_be(
    run: Any, refused: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    assert "--task x is not known: it must be one of CoLA, SST-2" in refused("--task", "x")
    assert "--task SST-2 needs --input" in refused("--task", "SST-2")
    task = ("--task", "SST-2", "--input", raw)
    assert f"{raw} has no train.tsv: --input must be SST-2's folder" in refused(*task)
    assert "knows the layout: leave out --columns" in refused(*task, "--columns", "1")
    assert "knows the layout: leave out --header" in refused(*task, "--no-header")
    files = dict(LAYOUTS["SST-2"][0])
    del files["test.tsv"]
    write(raw, files)
    assert list(run(*task).splits) == ["train", "valid"]
    assert f"no test: {raw} has no test.tsv" in capsys.readouterr().err
    write(raw, {"dev.tsv": tsv(["sentence", "label"], ["bad", "2"])})
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert f"{raw}/dev.tsv:2: the label '2' is none of the classes (0, 1)" in refused(*task)


# One's own tables


def test_several_files_of_all_kinds(run: Any, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.tsv": "film\tverdict\ta b\ngood\tthe best\tb\nbad\tworst\tc\n",
            "dev.csv": 'verdict,film\nworst,"good film"\n',
            "dev.jsonl": '{"film": "bad film", "verdict": "the best"}\n',
            "test.tsv": "film\nbad\n",
            "test.csv": "film,verdict\nbad,\n",
        },
    )
    files = ("dev.csv", "dev.jsonl")
    arguments = own(tmp_path, "--valid", *(tmp_path / name for name in files))
    arguments += ["--test", tmp_path / "test.tsv", tmp_path / "test.csv"]
    arguments[arguments.index("1")], arguments[arguments.index("2")] = "film", "verdict"
    record = run(*arguments)
    check(
        tmp_path / "data",
        {
            "train": [(["good"], "the best"), (["bad"], "worst")],
            "valid": [(["good film"], "worst")],
            "valid1": [(["bad film"], "the best")],
            "test": [(["bad"], None)],
            "test1": [(["bad"], None)],
        },
    )
    # 'the best' cannot be a symbol of fairseq's dictionary: symbols are the numbers of the classes.
    lines = (tmp_path / "data/label/dict.txt").read_text().splitlines()
    assert lines == ["0 1", "1 1"]
    assert record.problem == Classification(("the best", "worst"))
    assert (record.columns, record.label_column, record.header) == (["film"], "verdict", True)
    assert record.train_options() == [
        *("--num-classes", "2", "--init-token", "0", "--max-positions", "512")
    ]
    copied = (tmp_path / "data/vocabulary/dict.txt").read_bytes()
    assert copied == (tmp_path / "data/input0/dict.txt").read_bytes()


@pytest.mark.parametrize(
    ("labels", "given", "order"),
    [
        (["10", "9", "-1"], [], ["-1", "9", "10"]),
        (["b", "a", "10"], [], ["10", "a", "b"]),
        (["b", "a", "c"], ["c", "b", "a"], ["c", "b", "a"]),
        (["b", "a"], ["c", "b", "a"], ["c", "b", "a"]),
    ],
)
def test_order_of_classes(
    labels: list[str], given: list[str], order: list[str], run: Any, tmp_path: Path
) -> None:
    rows = labels * 2
    write(tmp_path, {"train.tsv": "".join(f"a\t{label}\n" for label in rows)})
    record = run(*own(tmp_path, *(["--labels", *given] if given else [])))
    assert record.problem.labels == tuple(order)
    check(tmp_path / "data", {"train": [(["a"], label) for label in rows]})
    symbols = [x.split()[0] for x in (tmp_path / "data/label/dict.txt").read_text().splitlines()]
    assert symbols == order


@given(st.lists(st.integers().map(str), min_size=1))
def test_integers_are_in_the_order_of_their_values(labels: list[str]) -> None:
    assert [int(label) for label in in_order(labels)] == sorted({int(x) for x in labels})


def test_a_number_may_be_too_long_for_python() -> None:
    assert in_order(["1" * 5000, "0"]) == ["0", "1" * 5000]


def test_regression(run: Any, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "a\t1.5\nb\t-2e1\n", "test.tsv": "a\n"})
    arguments = own(tmp_path, "--regression", "--test", tmp_path / "test.tsv")
    record = run(*arguments)
    assert record.problem == Regression()
    assert record.train_options()[:3] == ["--num-classes", "1", "--regression-target"]
    check(tmp_path / "data", {"train": [(["a"], 1.5), (["b"], -20.0)], "test": [(["a"], None)]})
    (tmp_path / "data").rename(tmp_path / "first")
    assert run(*arguments, "--scale", "10").problem == Regression(scale=10)
    check(tmp_path / "data", {"train": [(["a"], 0.15), (["b"], -2.0)], "test": [(["a"], None)]})
    (tmp_path / "data").rename(tmp_path / "second")
    for bad in ("high", "nan", "inf"):
        write(tmp_path, {"train.tsv": f"a\t1.5\nb\t{bad}\n"})
        message = f"train.tsv:2: the label '{bad}' is no number"
        assert message in refused(*arguments)


def test_multiple_choice(run: Any, refused: Any, tmp_path: Path) -> None:
    header = "context\tone\ttwo\tthree\tright\n"
    rows = "a b\tc\td\te\tC\na\tb\tc d\te\tA\na\tb\tc\td\tB\n"
    write(tmp_path, {"train.tsv": header + rows, "test.tsv": header.replace("\tright", "") + "\n"})
    arguments = own(tmp_path, "--choices", "one", "two", "three", columns=("context",))
    arguments[arguments.index("2")] = "right"
    record = run(*arguments)
    assert (record.problem, record.inputs) == (MultipleChoice(("A", "B", "C")), 4)
    task = SentenceRankingTask.setup_task(
        Namespace(
            data=str(tmp_path / "data"),
            criterion="sentence_ranking",
            num_classes=len(record.problem.labels) or 1,
            init_token=0,
            separator_token=2,
            no_shuffle=True,
            shorten_method="none",
            shorten_data_split_list="",
            max_option_length=None,
            max_positions=512,
            dataset_impl=None,
            seed=1,
        )
    )
    dataset = task.load_dataset("train")
    for i, choice in enumerate("cde", 1):
        tokens = dataset[0][f"net_input{i}.src_tokens"]
        symbols = ["<s>", choice, "</s>", "</s>", "a", "b", "</s>"]
        assert tokens.tolist() == list(map(task.dictionary.index, symbols))
    assert [dataset[i]["target"] for i in range(3)] == [2, 0, 1]
    write(tmp_path, {"train.tsv": header + rows.replace("\tB\n", "\tA\n")})
    (tmp_path / "data").rename(tmp_path / "first")
    message = (
        "column right: the labels are A, C, but they must say which of 3 choices is right: give"
    )
    assert message in refused(*arguments)
    assert run(*arguments, "--labels", "A", "B", "C").problem == MultipleChoice(("A", "B", "C"))


BAD_OPTIONS = [
    (["--columns", "1"], "give --train, or --task and --input"),
    (["--train", "x.tsv", "--label", "2"], "give --columns, or --task and --input"),
    (["--train", "x.tsv", "--columns", "1"], "give --label, or --task and --input"),
    ([*own(Path("x")), "--input", "x"], "--input goes with --task"),
    ([*own(Path("x")), "--max-positions", "5"], "--max-positions is 5: it must be 6 or more"),
    ([*own(Path("x")), "--scale", "5"], "--scale goes with --regression"),
    ([*own(Path("x")), "--regression", "--scale", "0"], "--scale is 0.0: it must be above 0"),
    ([*own(Path("x")), "--regression", "--labels", "a"], "--regression and --labels exclude"),
    ([*own(Path("x")), "--labels", "a", "a"], "--labels a a: one of them comes twice"),
    ([*own(Path("x")), "--choices", "2"], "--choices needs two or more columns"),
    (own(Path("x"), columns=("1", "2", "3")), "fairseq reads one text, or two"),
    (own(Path("x")), "x/train.tsv does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS)
def test_bad_options(arguments: list[Any], message: str, refused: Any) -> None:
    assert message in refused(*arguments)


BAD_TABLES = [
    ("", "train.tsv: there are no rows"),
    ("a\tx\nb\tx\n", "train.tsv has the label x (column 2): there is nothing to learn"),
    ("a\tx\nb\n", "train.tsv:2: 1 field where line 1 has 2"),
    ("a\tx\nb\t \n", "train.tsv:2: the label (column 2) is empty; if that means that there is n"),
    ("t\tlabel\na\tx\nb\tx\nc\ty\nc\ty\n", "train.tsv:1: no other row has the label 'label': give"),
    # The text taken for the label, or a number for a class.
    (
        "".join(f"{number % 2}\ttext {number}\n" for number in range(12)),
        "train.tsv, column 2: 12 different labels in 12 rows are hardly classes: give",
    ),
]


@pytest.mark.parametrize(("table", "message"), BAD_TABLES)
def test_bad_tables(table: str, message: str, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": table})
    assert message in refused(*own(tmp_path))


def test_few_rows_may_have_a_class_each(run: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "".join(f"text\t{number}\n" for number in range(10))})
    assert len(run(*own(tmp_path)).problem.labels) == 10
    names = [str(number) for number in range(12)]
    write(tmp_path, {"train.tsv": "".join(f"text\t{name}\n" for name in names)})
    assert run(*own(tmp_path, "--labels", *names), output="named").problem.labels == tuple(names)


def test_a_rare_class_may_come_first(run: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "a\trare\nb\tx\nc\tx\n"})
    assert run(*own(tmp_path, "--no-header")).problem.labels == ("rare", "x")


def test_other_splits_must_fit(refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "a\tx\nb\ty\n", "dev.tsv": "a\tx\na\tz\n", "test.tsv": "a\t\n"})
    message = "dev.tsv:2: the label 'z' is none of the classes (x, y)"
    assert message in refused(*own(tmp_path, "--valid", tmp_path / "dev.tsv"))
    assert message in refused(*own(tmp_path, "--test", tmp_path / "dev.tsv"))
    message = "test.tsv:1: the label (column 2) is empty"
    assert message in refused(*own(tmp_path, "--valid", tmp_path / "test.tsv"))
    write(tmp_path, {"test.tsv": "a\tx\nb\t\n"})
    message = "test.tsv:2: the label is empty, but others are not: if that means that there is none"
    assert message in refused(*own(tmp_path, "--test", tmp_path / "test.tsv"))


def test_an_empty_label_may_stand_for_none(run: Any, refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"a.tsv": "t\tl\na\tx\nb\t\nc\ty\n\t\n\t\n"})
    lines = (("a", "x"), ("b", None), ("c", "y"))
    write(tmp_path, {"a.jsonl": jsonl(*({"t": text, "l": label} for text, label in lines))})
    for name in ("a.tsv", "a.jsonl"):
        words = ["--train", tmp_path / name, "--columns", "t", "--label", "l"]
        assert "is empty; if that means that there is none, give --no-label" in refused(*words)
        words += ["--test", tmp_path / name, "--no-label", ""]
        splits = run(*words, output=name.replace(".", "_")).splits
        assert {(one.rows, one.dropped, one.labelled) for one in splits.values()} == {(2, 1, True)}
    snli = [*pairs("sentence1", "sentence2", *NLI3, label="gold_label")]
    snli.append({**snli[0], "gold_label": ""})
    write(tmp_path, {f"snli_1.0_{name}.jsonl": jsonl(*snli) for name in ("train", "dev")})
    words = ["--task", "SNLI", "--input", tmp_path]
    assert "give --no-label" in refused(*words)
    assert run(*words, "--no-label", "", output="snli").splits["train"].dropped == 1


def test_what_stands_for_no_label(
    run: Any, refused: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hugging Face's -1: where annotators did not agree (SNLI), and in secret test sets (GLUE)."""
    write(tmp_path, {"train.tsv": "a\t0\nb\t-1\nc\t1\n", "dev.tsv": "a\t-1\nb\t1\n"})
    write(tmp_path, {"test.tsv": "a\t-1\nb\t-1\n", "two.tsv": "a\t0\nb\t1\n"})
    options = [
        "--valid",
        tmp_path / "dev.tsv",
        "--test",
        tmp_path / "test.tsv",
        tmp_path / "dev.tsv",
    ]
    record = run(*own(tmp_path, *options, "--no-label", "-1"))
    assert record.problem.labels == ("0", "1")
    found = {name: (one.rows, one.dropped, one.labelled) for name, one in record.splits.items()}
    assert found == {
        **{"train": (2, 1, True), "valid": (1, 1, True)},
        **{"test": (2, 0, False), "test1": (1, 1, True)},
    }
    assert list(examples_of(tmp_path / "data", "train")) == [(["a"], "0"), (["c"], "1")]
    assert "is a class" not in capsys.readouterr().err

    assert run(*own(tmp_path), output="three").problem.labels == ("-1", "0", "1")
    said = capsys.readouterr().err
    assert "1 rows of" in said
    assert "have the label -1, which is a class here: give --no-label -1" in said
    run(*own(tmp_path, "--labels", "1", "0", "-1"), output="named")
    write(tmp_path, {"train.tsv": "a\t1\nb\t-1\n"})
    run(*own(tmp_path), output="signs")
    assert "is a class" not in capsys.readouterr().err

    write(tmp_path, {"train.tsv": "a\t0\nb\t1\n"})
    (tmp_path / "data").rename(tmp_path / "first")
    said = refused(*own(tmp_path, "--test", tmp_path / "dev.tsv"))
    assert "the label '-1' is none of the classes (0, 1); if it means that there is none, " in said
    assert said.endswith("give --no-label -1")


def test_an_existing_folder_stays(refused: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "a\tx\nb\ty\n", "data/notes": "mine"})
    assert f"{tmp_path}/data exists: remove it" in refused(*own(tmp_path))


# Encoding


def test_long_examples_lose_their_ends(run: Any, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.tsv": "a b c d e f\tg\tx\na b c d\te f g h\ty\na\tb\tx\n",
            "one.tsv": "a b c d e f g h i j\tx\na b c d e f\ty\n",
        },
    )
    record = run(*own(tmp_path, "--max-positions", "8", columns=("1", "2"), label="3"))
    assert record.splits["train"].truncated == 2
    check(
        tmp_path / "data",
        {"train": [(["a b c", "g"], "x"), (["a b", "e f"], "y"), (["a", "b"], "x")]},
    )
    arguments = own(tmp_path, "--max-positions", "8")
    arguments[1] = tmp_path / "one.tsv"
    record = run(*arguments, output="one")
    assert record.splits["train"].truncated == 1
    check(tmp_path / "one", {"train": [(["a b c d e f"], "x"), (["a b c d e f"], "y")]})
    dataset = task_of(tmp_path / "one").load_dataset("train")
    assert [len(dataset[i]["net_input.src_tokens"]) for i in range(2)] == [8, 8]


@pytest.mark.parametrize(("texts", "columns"), [("a b c\td", ("1", "2")), ("a b c d", ("1",))])
def test_the_length_that_all_but_few_inputs_keep(
    texts: str, columns: tuple[str, ...], run: Any, tmp_path: Path
) -> None:
    """Its tokens are those that fairseq makes batches by; one input in two thousand is longer."""
    label = str(1 + len(columns))
    table = [f"{texts}\tx\n", f"{texts}\ty\n"] * 2
    write(tmp_path, {"train.tsv": "".join(table)})
    record = run(*own(tmp_path, columns=columns, label=label))
    dataset = task_of(tmp_path / "data").load_dataset("train")
    assert record.splits["train"].length == max(map(dataset.num_tokens, range(4)))
    write(tmp_path, {"train.tsv": "".join([f"{texts} a b c\tx\n", *table * 500])})
    many = run(*own(tmp_path, columns=columns, label=label), output="many")
    assert many.splits["train"].length == record.splits["train"].length


def test_a_context_is_cut_once_for_all_its_candidates(words: Path) -> None:
    encoder = ExampleEncoder(Vocabulary.load(words), 10, MultipleChoice())
    encoded = encoder(["a b c d e f", "g", "g h i j"])
    assert encoded.texts == ("a b c", "g", "g h i")
    assert encoded.truncated
    assert encoded.tokens == 10
    assert not encoder(["a b c", "g", "g h i"]).truncated


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 40))
def test_shorten_is_taking_tokens_off_the_longest(lengths: list[int], room: int) -> None:
    slowly = list(lengths)
    while sum(slowly) > room:
        slowly[slowly.index(max(slowly))] -= 1
    kept = truncate_longest_first(lengths, room)
    assert sorted(kept) == sorted(slowly)
    assert all(new <= old for new, old in zip(kept, lengths, strict=True))


@pytest.mark.parametrize("overwritten", ["", "<unk>", "<unk> <s> </s>"])  # as CamemBERT's dict.txt
def test_symbols_that_are_not_the_texts_own(overwritten: str, run: Any, tmp_path: Path) -> None:
    symbols = [f"{word} 9 #fairseq:overwrite" for word in overwritten.split()]
    symbols += [f"{word} 1" for word in WORDS]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/dict.txt").write_text("".join(f"{symbol}\n" for symbol in symbols))
    write(tmp_path, {"train.tsv": "a </s> <s> b <pad>\tx\nstrange good\ty\n"})
    assert run(*own(tmp_path), vocabulary=tmp_path / "own").splits["train"].unknown == 4
    dataset = task_of(tmp_path / "data").load_dataset("train")
    dictionary = Dictionary.load(str(tmp_path / "data/input0/dict.txt"))
    unk, eos = dictionary.unk(), dictionary.eos()
    a, b, good = map(dictionary.index, ("a", "b", "good"))
    assert dataset[0]["net_input.src_tokens"].tolist() == [0, a, unk, unk, b, unk, eos]
    assert dataset[1]["net_input.src_tokens"].tolist() == [0, unk, good, eos]


def test_many_processes_make_the_same(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{WORDS[i % 10]} {WORDS[i % 7]}\t{i % 3}\n" for i in range(500)]
    write(tmp_path, {"train.tsv": "".join(rows)})
    run(*own(tmp_path), output="one")
    monkeypatch.setattr("alum_fairseq.data.encoding._EXAMPLES_PER_WORKER", 100)
    monkeypatch.setattr("alum_fairseq.prepare.build._LINES_A_WORKER", 100)
    run(*own(tmp_path), "--workers", 3, output="several")
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    assert len(names) == 8
    for name in names - {Path("alum-prepare.json")}:
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_it_is_what_fairseq_preprocess_makes(words: Path, tmp_path: Path) -> None:
    """Byte for byte, by the installed commands."""
    texts = ["the film was good", "strange", "the film is bad"]
    write(
        tmp_path,
        {
            "train.tsv": "".join(f"{text}\t{'xy'[i % 2]}\n" for i, text in enumerate(texts)),
            "train.txt": "".join(f"{text}\n" for text in texts),
        },
    )
    done = run_tool(
        *("alum-prepare", *own(tmp_path, "--no-header")),
        *("--vocabulary", words, "--output", tmp_path / "data"),
    )
    assert "--num-classes 2 --init-token 0" in done.stdout
    run_tool(
        *("fairseq-preprocess", "--only-source", "--workers", 1, "--srcdict", words / "dict.txt"),
        *("--trainpref", tmp_path / "train.txt", "--destdir", tmp_path / "stock"),
    )
    for name in ("train.bin", "train.idx", "dict.txt"):
        ours = (tmp_path / "data/input0" / name).read_bytes()
        assert ours == (tmp_path / "stock" / name).read_bytes()


def test_summary(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"train.tsv": "a\tx\nstrange\ty\nb\ty\n", "test.tsv": "a\n"})
    run(*own(tmp_path, "--no-header", "--test", tmp_path / "test.tsv"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["split", "rows", "truncated", "left", "out", "unknown", "tokens", "labels"],
        ["train", "3", "0", "0", "1", "x:", "1,", "y:", "2"],
        ["test", "1", "0", "0", "0", "none"],
    ]
    options = "--num-classes 2 --init-token 0 --max-positions 512 --required-batch-size-multiple 1"
    assert lines[-1] == f"  {tmp_path}/data {options}"
    write(tmp_path, {"train.csv": 't,l\na,"x\n\ty"\nb,z\n'})
    words = ["--train", tmp_path / "train.csv", "--columns", "t", "--label", "l"]
    record = run(*words, "--labels", " z", "x\n\ty", output="names")
    assert record.problem.labels == ("z", "x\n\ty")
    assert "  z: 1, x y: 1\n" in capsys.readouterr().out


# The record


def test_records_are_checked(run: Any, tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": "a\tx\nb\ty\n"})
    record = run(*own(tmp_path))
    path = tmp_path / "data" / "alum-prepare.json"
    good = json.loads(path.read_text())
    record.save(tmp_path)
    assert DataRecord.load(tmp_path) == record
    for content, message in {
        "{": "is no record of alum-prepare",
        "[]": "has version None",
        json.dumps(good | {"version": 2}): "has version 2: this alum_fairseq reads version 1",
        json.dumps(good | {"more": 1}): "is no record of alum-prepare",
        json.dumps(good | {"splits": {"train": {}}}): "is no record of alum-prepare",
        json.dumps(good | {"splits": []}): "is no record of alum-prepare",
        json.dumps(good | {"labels": None}): "labels is None",
    }.items():
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            DataRecord.load(tmp_path / "data")
    for wrong in ("masked_lm", "parsing", ["x"], None):
        path.write_text(json.dumps(good | {"problem": wrong}))
        with pytest.raises(UsageError, match="is no record of alum-prepare: problem is "):
            DataRecord.load(tmp_path / "data")
    path.unlink()
    with pytest.raises(UsageError, match="name a folder that alum-prepare made"):
        DataRecord.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("kind", "labels", "scale", "problem"),
    [
        ("classification", ["x", "y"], 1.0, Classification(("x", "y"))),
        ("regression", None, 5.0, Regression(scale=5.0)),
        ("choices", ["A", "B"], 1.0, MultipleChoice(("A", "B"))),
    ],
)
def test_records_of_earlier_versions_are_read(
    run: Any,
    tmp_path: Path,
    kind: str,
    labels: list[str] | None,
    scale: float,
    problem: SupervisedProblem,
) -> None:
    write(tmp_path, {"train.tsv": "a\tx\nb\ty\n"})
    run(*own(tmp_path))
    path = tmp_path / "data" / "alum-prepare.json"
    entries = json.loads(path.read_text())
    assert entries["problem"] == "classification"
    del entries["problem"]
    entries |= {"kind": kind, "labels": labels, "scale": scale}
    path.write_text(json.dumps(entries))
    record = DataRecord.load(path.parent)
    assert record.problem == problem
    record.save(path.parent)
    assert DataRecord.load(path.parent) == record


# Real data, with the vocabulary of the released models

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} (real data) is absent")


def real_rows(name: str, split: str) -> list[list[str]]:
    lines = (SHARED / name / f"{split}.tsv").read_text(encoding="utf-8").split("\n")
    return [line.split("\t") for line in lines if line]


@needs_data
@pytest.mark.parametrize("name", ["sst2", "sick", "cola"])
def test_real_data(name: str, run: Any, tmp_path: Path) -> None:
    """Dev and test sets, against a straightforward reading of the files."""
    folder, gpt2 = SHARED / name, SHARED / "gpt2_bpe"
    train, other = folder / "dev.tsv", folder / ("dev_ood" if name == "cola" else "test")
    columns, label, skip = {
        "sst2": ([0], 1, 0),
        "sick": ([1, 2], 4, 1),
        "cola": ([3], 1, 0),
    }[name]
    options = ["--train", train, "--valid", other.with_suffix(".tsv"), "--label", label + 1]
    options += ["--columns", *(column + 1 for column in columns)]
    record = run(*options, *(["--header"] if skip else []), vocabulary=gpt2)
    task = task_of(tmp_path / "data")
    encoder = Vocabulary.load(gpt2).encoder()
    for split, file in {"train": "dev", "valid": other.name}.items():
        rows = real_rows(name, file)[skip:]
        dataset = task.load_dataset(split)
        assert len(dataset) == len(rows) == record.splits[split].rows
        for i in range(0, len(rows), 7):
            # As fairseq's RobertaHubInterface.encode does it.
            text = "<s>"
            for j, column in enumerate(columns):
                text += (" </s>" if j else "") + f" {encoder.encode(rows[i][column].strip())} </s>"
            tokens = task.dictionary.encode_line(text, append_eos=False, add_if_not_exist=False)
            example = dataset[i]
            assert torch.equal(example["net_input.src_tokens"], tokens.long())
            assert record.problem.labels[int(example["target"])] == rows[i][label]
    batch = dataset.collater([dataset[i] for i in range(4)])
    assert batch["net_input"]["src_tokens"].shape[0] == 4
    assert record.bpe == "gpt2"


@needs_data
def test_real_known_task(run: Any, tmp_path: Path) -> None:
    record = run("--task", "CoLA", "--input", SHARED / "cola", vocabulary=SHARED / "gpt2_bpe")
    assert record.splits["train"].rows == 8_551
    assert record.splits["valid"].label_counts == {"0": 160, "1": 367}
    labels = data_utils.load_indexed_dataset(
        str(tmp_path / "data/label/train"), Dictionary.load(str(tmp_path / "data/label/dict.txt"))
    )
    expected = [int(row[1]) for row in real_rows("cola", "train")]
    assert [int(labels[i][0]) - 4 for i in range(len(labels))] == expected
