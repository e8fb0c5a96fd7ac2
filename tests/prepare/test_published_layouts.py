"""Choices and SuperGLUE by name: what fairseq's tasks read is what the published files say."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask

from alum_fairseq.data.record import DataRecord
from alum_fairseq.data.tables import TableFormat, read_rows
from alum_fairseq.errors import UsageError
from alum_fairseq.prepare.command import main
from alum_fairseq.prepare.datasets import KNOWN_TASKS
from alum_fairseq.problems import MultipleChoice, TokenProblem

WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "good",
    "bad",
    "the",
    "film",
    "was",
    "is",
    "_",
    "cause",
    "effect",
    "true",
]
SPLITS = ("train", "valid", "test")


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def of(columns: dict[str, Any], label: str, *labels: Any) -> str:
    """Rows that differ in their labels; None: without the key."""
    return jsonl(*(columns | ({} if x is None else {label: x}) for x in labels))


def superglue(columns: dict[str, Any], train: list[Any], valid: Any) -> dict[str, str]:
    numbered = {**columns, "idx": 0}
    return {
        "train.jsonl": of(numbered, "label", *train),
        "val.jsonl": of(numbered, "label", valid),
        "test.jsonl": of(numbered, "label", None),
    }


HELLASWAG = {
    "ind": 24,
    "activity_label": "a",
    "ctx_a": "a b",
    "ctx_b": "the film",
    "ctx": "a b the film",
    "split_type": "indomain",
    "endings": ["was good", "was bad", "is", "was"],
    "source_id": "activitynet~v_x",
}
# Of WikiHow's half ctx_b is empty.
WIKIHOW = HELLASWAG | {"ctx_a": "a b", "ctx_b": "", "ctx": "a b", "source_id": "wikihow~1"}
HELLASWAG_TEXTS = ["a b", "the film was good", "the film was bad", "the film is", "the film was"]
WIKIHOW_TEXTS = ["a b", "was good", "was bad", "is", "was"]
SWAG = (
    ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3",
    '{},anetv_x,1,"a b the film","a b",the film,gold,was good,was bad,is,was',
)
SWAG_TEST = (SWAG[0].replace(",gold-source", ""), SWAG[1].replace(",gold,", ","))
RACE = {
    "id": "high1.txt",
    "article": "a b c",
    "questions": ["the film is _ .", "is the film good"],
    "options": [["good", "bad", "a", "b"], ["c", "d", "e", "f"]],
    "answers": ["B", "D"],
}
RACE_TEXTS = [
    (["a b c", *(f"the film is {x} ." for x in ("good", "bad", "a", "b"))], "B"),
    (["a b c", *(f"is the film good {x}" for x in "cdef")], "D"),
]
CSQA = {
    "id": "1",
    "question": {
        "question_concept": "film",
        "choices": [{"label": label, "text": label.lower()} for label in "ABCDE"],
        "stem": "the film is",
    },
}
PIQA = {"goal": "the film", "sol1": "good", "sol2": "bad"}
COPA = {"premise": "a b", "choice1": "good", "choice2": "bad"}
MULTIRC = {
    "text": "a b c",
    "questions": [
        {"question": "is", "answers": [{"text": "good", "idx": 0}, {"text": "bad", "idx": 1}]},
        {"question": "was", "answers": [{"text": "the", "idx": 2}]},
    ],
}


def multirc(*labels: int) -> str:
    rest = iter(labels)
    questions = [
        {**one, "answers": [x | ({"label": next(rest)} if labels else {}) for x in one["answers"]]}
        for one in MULTIRC["questions"]
    ]
    return jsonl({"idx": 0, "version": 1.1, "passage": MULTIRC | {"questions": questions}})


def multirc_rows(*labels: str | None) -> list[Any]:
    pairs = ("is good", "is bad", "was the")
    return [(["a b c", text], label) for text, label in zip(pairs, labels, strict=True)]


def race(*levels: str) -> dict[str, list[Any]]:
    """One file a level in training, and two of the high one."""
    found: dict[str, list[Any]] = dict.fromkeys(SPLITS, [*RACE_TEXTS] * len(levels))
    return found | {"train": RACE_TEXTS * (len(levels) + ("high" in levels))}


RACE_FILES = {
    f"{split}/{level}/{number}.txt": json.dumps(RACE)
    for split in ("train", "dev", "test")
    for level, numbers in {"middle": "1", "high": "12" if split == "train" else "1"}.items()
    for number in numbers
}


def rows(texts: list[str], *labels: str | None) -> list[Any]:
    return [(texts, label) for label in labels]


LAYOUTS: dict[str, tuple[dict[str, str], dict[str, list[Any]]]] = {
    "WNLI": (
        {
            "train.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta b\tc\t1\n1\ta b\tc\t0\n",
            "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta b\tc\t0\n",
            "test.tsv": "index\tsentence1\tsentence2\n0\ta b\tc\n",
        },
        {
            "train": rows(["a b", "c"], "1", "0"),
            "valid": rows(["a b", "c"], "0"),
            "test": rows(["a b", "c"], None),
        },
    ),
    "BoolQ": (
        superglue({"question": "is it", "passage": "a b"}, [True, False], False),
        {
            "train": rows(["a b", "is <unk>"], "true", "false"),
            "valid": rows(["a b", "is <unk>"], "false"),
            "test": rows(["a b", "is <unk>"], None),
        },
    ),
    "CB": (
        superglue(
            {"premise": "a b", "hypothesis": "c"},
            ["contradiction", "entailment", "neutral"],
            "neutral",
        ),
        {
            "train": rows(["a b", "c"], "contradiction", "entailment", "neutral"),
            "valid": rows(["a b", "c"], "neutral"),
            "test": rows(["a b", "c"], None),
        },
    ),
    "SuperGLUE-RTE": (
        superglue(
            {"premise": "a b", "hypothesis": "c"}, ["entailment", "not_entailment"], "entailment"
        ),
        {
            "train": rows(["a b", "c"], "entailment", "not_entailment"),
            "valid": rows(["a b", "c"], "entailment"),
            "test": rows(["a b", "c"], None),
        },
    ),
    "WiC": (
        superglue(
            {"word": "film", "sentence1": "the film", "sentence2": "a film", "start1": 4},
            [True, False],
            True,
        ),
        {
            "train": rows(["film the film", "film a film"], "true", "false"),
            "valid": rows(["film the film", "film a film"], "true"),
            "test": rows(["film the film", "film a film"], None),
        },
    ),
    "MultiRC": (
        {"train.jsonl": multirc(1, 0, 1), "val.jsonl": multirc(0, 0, 1), "test.jsonl": multirc()},
        {
            "train": multirc_rows("1", "0", "1"),
            "valid": multirc_rows("0", "0", "1"),
            "test": multirc_rows(None, None, None),
        },
    ),
    "COPA": (
        superglue(COPA | {"question": "effect"}, [1, 0], 1),
        {
            "train": rows(["a b", "effect good", "effect bad"], "1", "0"),
            "valid": rows(["a b", "effect good", "effect bad"], "1"),
            "test": rows(["a b", "effect good", "effect bad"], None),
        },
    ),
    "HellaSwag": (
        {
            "hellaswag_train.jsonl": of(HELLASWAG, "label", 3, 0),
            "hellaswag_val.jsonl": of(WIKIHOW, "label", 2),
            "hellaswag_test.jsonl": of(HELLASWAG, "label", None),
        },
        {
            "train": rows(HELLASWAG_TEXTS, "3", "0"),
            "valid": rows(WIKIHOW_TEXTS, "2"),
            "test": rows(HELLASWAG_TEXTS, None),
        },
    ),
    "SWAG": (
        {
            "train.csv": f"{SWAG[0]},label\n{SWAG[1].format(0)},0\n{SWAG[1].format(1)},2\n",
            "val.csv": f"{SWAG[0]},label\n{SWAG[1].format(0)},1\n",
            "test.csv": f"{SWAG_TEST[0]}\n{SWAG_TEST[1].format(0)}\n",
        },
        {
            "train": rows(HELLASWAG_TEXTS, "0", "2"),
            "valid": rows(HELLASWAG_TEXTS, "1"),
            "test": rows(HELLASWAG_TEXTS, None),
        },
    ),
    "RACE": (
        RACE_FILES,
        race("middle", "high") | dict.fromkeys(("test1", "test2"), RACE_TEXTS),
    ),
    "RACE-middle": (RACE_FILES, race("middle")),
    "RACE-high": (RACE_FILES, race("high")),
    "CommonsenseQA": (
        {
            "train_rand_split.jsonl": of(CSQA, "answerKey", "E", "A"),
            "dev_rand_split.jsonl": of(CSQA, "answerKey", "B"),
            "test_rand_split_no_answers.jsonl": of(CSQA, "answerKey", None),
        },
        {
            "train": rows(["the film is", *"abcde"], "E", "A"),
            "valid": rows(["the film is", *"abcde"], "B"),
            "test": rows(["the film is", *"abcde"], None),
        },
    ),
    "PIQA": (
        {
            "train.jsonl": jsonl(PIQA, PIQA),
            "train-labels.lst": "1\n0\n",
            "valid.jsonl": jsonl(PIQA),
            "valid-labels.lst": "1\n",
            "tests.jsonl": jsonl(PIQA),
        },
        {
            "train": rows(["the film", "good", "bad"], "1", "0"),
            "valid": rows(["the film", "good", "bad"], "1"),
            "test": rows(["the film", "good", "bad"], None),
        },
    ),
}


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., int]:
    """Runs the command with a vocabulary of words."""
    words = tmp_path / "words"
    words.mkdir()
    (words / "dict.txt").write_text("".join(f"{word} 1\n" for word in [*WORDS, "."]))

    def call(*arguments: Any, output: str = "data") -> int:
        options = ["--vocabulary", words, "--output", tmp_path / output, "--workers", 1]
        return main([str(word) for word in (*arguments, *options)])

    return call


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def examples_of(folder: Path, split: str) -> list[tuple[list[str], str | None]]:
    """Texts (the context first) and labels, as fairseq's own tasks read them."""
    record = DataRecord.load(folder)
    choices = isinstance(record.problem, MultipleChoice)
    common = {"data": str(folder), "num_classes": len(record.problem.labels), "seed": 1}
    common |= {"init_token": 0, "separator_token": 2, "no_shuffle": True, "max_positions": 512}
    if choices:
        common |= {"criterion": "sentence_ranking", "shorten_method": "none"}
        common |= {"shorten_data_split_list": "", "max_option_length": None, "dataset_impl": None}
        task = SentenceRankingTask.setup_task(Namespace(**common))
    else:
        task = SentencePredictionTask.setup_task(
            SentencePredictionConfig(**common, regression_target=False)
        )
    dataset = task.load_dataset(split)
    found = []
    for i in range(len(dataset)):
        example = dataset[i]
        inputs = [example[key].tolist() for key in sorted(example) if key.endswith("src_tokens")]
        texts = []
        for tokens in inputs:
            whole = " ".join(task.dictionary[token] for token in tokens)
            texts.append(whole.removeprefix("<s> ").removesuffix(" </s>").split(" </s> </s> "))
        label = example.get("target")
        label = None if label is None else record.problem.labels[int(label)]
        if choices:
            assert len({context for _, context in texts}) == 1
            texts = [[texts[0][1], *(choice for choice, _ in texts)]]
        found.append((texts[0], label))
    return found


def test_every_known_layout_is_tested() -> None:
    from test_prepare import LAYOUTS as EARLIER

    of_tokens = {name for name, x in KNOWN_TASKS.items() if isinstance(x.problem, TokenProblem)}
    several = {"FEVER-NLI"}  # test_several_training_sets.py
    assert {*LAYOUTS, *EARLIER, *of_tokens, *several} == set(KNOWN_TASKS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_by_name(name: str, prepare: Any, tmp_path: Path) -> None:
    files, expected = LAYOUTS[name]
    assert prepare("--task", name.lower(), "--input", write(tmp_path / "raw", files)) == 0
    record = DataRecord.load(tmp_path / "data")
    assert list(record.splits) == list(expected)
    for split, examples in expected.items():
        assert examples_of(tmp_path / "data", split) == examples
        assert record.splits[split].labelled is (examples[0][1] is not None)
    assert record.task == name


def test_under_their_other_names(prepare: Any, tmp_path: Path) -> None:
    """PIQA's development set is called dev in the older of its archives."""
    files, expected = LAYOUTS["PIQA"]
    renamed = {name.replace("valid", "dev").replace("tests", "test"): files[name] for name in files}
    assert prepare("--task", "PIQA", "--input", write(tmp_path / "raw", renamed)) == 0
    assert {split: examples_of(tmp_path / "data", split) for split in expected} == expected


MALFORMED = [
    (
        "HellaSwag",
        {"hellaswag_val.jsonl": of(HELLASWAG | {"endings": ["good", "bad", "is"]}, "label", 2)},
        "hellaswag_val.jsonl:1: endings has 3 entries, where 4 should be",
    ),
    (
        "HellaSwag",
        {"hellaswag_val.jsonl": of(HELLASWAG | {"endings": [*"abcde"]}, "label", 2)},
        "hellaswag_val.jsonl:1: endings has 5 entries, where 4 should be",
    ),
    (
        "HellaSwag",
        {"hellaswag_val.jsonl": of(HELLASWAG | {"endings": "good"}, "label", 2)},
        "hellaswag_val.jsonl:1: there is no endings.0",
    ),
    (
        "RACE",
        {"dev/high/1.txt": json.dumps(RACE | {"options": [[*"abcd"], [*"abc"]]})},
        "dev/high/1.txt:1: options.#1 has 3 entries, where 4 should be",
    ),
    (
        "RACE",
        {"dev/high/1.txt": json.dumps(RACE | {"answers": ["A"]})},
        "dev/high/1.txt:1: there must be as many of each: questions has 2, options has 2, ",
    ),
    (
        "CommonsenseQA",
        {"dev_rand_split.jsonl": of(CSQA, "answerKey", "F")},
        "dev_rand_split.jsonl:1: the label 'F' is none of the classes (A, B, C, D, E)",
    ),
    (
        "CommonsenseQA",
        {"dev_rand_split.jsonl": of(CSQA, "answerKey", None)},
        "dev_rand_split.jsonl:1: there is no answerKey",
    ),
    (
        "PIQA",
        {"valid-labels.lst": "1\n0\n"},
        "valid-labels.lst has 2 labels, but ",
    ),
    ("MultiRC", {"val.jsonl": multirc()}, "val.jsonl:1: there is no passage.questions.#0.answers"),
]


@pytest.mark.parametrize(("name", "changed", "message"), MALFORMED)
def test_malformed(
    name: str,
    changed: dict[str, str],
    message: str,
    prepare: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = write(tmp_path / "raw", LAYOUTS[name][0] | changed)
    assert prepare("--task", name, "--input", raw) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert message in line
    assert not (tmp_path / "data").exists()


def test_labels_beside_must_be_there(
    prepare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write(tmp_path / "raw", LAYOUTS["PIQA"][0])
    (raw / "valid-labels.lst").unlink()
    assert prepare("--task", "PIQA", "--input", raw) == 2
    assert f"{raw}/valid-labels.lst does not exist" in capsys.readouterr().err


# The columns that are paths, or joined, of one's own tables


def texts(path: Path, text: str, *columns: str, label: str | None = None) -> list[Any]:
    path.write_text(text, encoding="utf-8")
    return [(row.texts, row.label) for row in read_rows(path, TableFormat(), columns, label)]


def test_joined_columns_of_tables(tmp_path: Path) -> None:
    table = "a,b,a+b\n x ,y,z\nx _ x,y,z\nx_x,y,z\n,y,z\n"
    found = texts(tmp_path / "x.csv", table, "b", "a+b")
    assert found == [(("y", "z"), None)] * 4  # a column of that very name
    found = texts(tmp_path / "x.csv", table.replace("a+b", "c"), "a+b", "c")
    assert [row[0] for row, _ in found] == ["x y", "x y x", "x_x y", "y"]
    assert texts(tmp_path / "x.tsv", "x\ty\n", "2+1") == [(("y x",), None)]
    with pytest.raises(UsageError, match="there is no column d, but a, b, c"):
        texts(tmp_path / "x.csv", table.replace("a+b", "c"), "a+d")
    with pytest.raises(UsageError, match="columns count from 1"):
        texts(tmp_path / "x.tsv", "x\ty\n", "1+0")


def test_paths_in_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    nested = {"a": {"b": ["x", "y"]}, "c.d": "z", "c": {"d": "w"}, "n": [{"t": "p", "l": 1}]}
    assert texts(path, jsonl(nested), "a.b.0", "a.b.1") == [(("x", "y"), None)]
    assert texts(path, jsonl(nested), "c.d") == [(("z",), None)]  # a key of that very name
    assert texts(path, jsonl(nested), "n.*.t", "c.d", label="n.*.l") == [(("p", "z"), "1")]
    assert texts(path, jsonl(nested | {"n": []}), "n.*.t") == []
    for columns, message in {
        ("a.b.0",): "a.b has 2 entries, where 1 should be",
        ("a.x",): "there is no a.x: there are a, c.d, c, n",
        ("a.b.*.x",): "there is no a.b.#0.x",
        ("a",): "a must be a text, not",
        ("x.*",): "there is no x.",
    }.items():
        with pytest.raises(UsageError, match=f"x.jsonl:1: {message}".replace("*", r"\*")):
            texts(path, jsonl(nested), *columns)
