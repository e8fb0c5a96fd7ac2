"""Ready-made adversarial sets: their layouts, and what their labels are for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alum_fairseq import UsageError
from alum_fairseq.data.tables import TableFormat
from alum_fairseq.problems import Classification, Regression, SpanPrediction
from alum_fairseq.robustness.parts.adversarial_set import AdversarialSetPart
from alum_fairseq.robustness.parts.part import Records
from alum_fairseq.robustness.sets import read_set
from alum_fairseq.robustness.statistics import bootstrap, interval, mean
from alum_fairseq.robustness.types import Example

THREE = ["contradiction", "neutral", "entailment"]
PAIR = ("premise", "hypothesis")

ANLI = [
    {"uid": "a", "context": "Ann sings. ", "hypothesis": "Ann is heard.", "label": "e"},
    {"uid": "b", "context": "Ann sings.", "hypothesis": "Ann is old.", "label": "n"},
    {"uid": "c", "context": "Ann sings.", "hypothesis": "Ann is mute.", "label": "c"},
]
HANS = (
    "gold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\theuristic\n"
    "non-entailment\t( x )\tThe judges saw him .\tHe saw the judges .\tex0\tlexical_overlap\n"
    'entailment\t( x )\tThe "judge" slept .\tThe "judge" slept .\tex1\tsubsequence\n'
)
ADVGLUE = {
    "sst2": [
        {"sentence": "bad  ", "label": 0, "idx": 0},
        {"sentence": "good", "label": 1, "idx": 1},
    ],
    "qqp": [{"question1": "why", "question2": "how", "label": 0, "idx": 0}],
    "mnli": [
        {"premise": "p", "hypothesis": f"h{i}", "label": i, "method": "textfooler", "idx": i}
        for i in range(3)
    ],
    "mnli-mm": [{"premise": "p", "hypothesis": "h", "label": 2, "idx": 0}],
    "qnli": [{"question": "q", "sentence": "s", "label": 1, "idx": 0}],
    "rte": [{"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}],
}

Set = tuple[str, list[Example]]  # its name first
Read = Callable[..., Set]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads a set in a folder that holds one of each layout; files may be added or replaced."""
    monkeypatch.chdir(tmp_path)
    files = {
        "dev.jsonl": "".join(json.dumps(row) + "\n" for row in ANLI),
        "hans.txt": HANS,
        "dev.json": json.dumps(ADVGLUE),
        "same.tsv": "premise\thypothesis\tgold\nA a.\tB b.\tneutral\n",
    }

    def run(
        spec: str,
        labels: list[str] | None,
        columns: tuple[str, ...] | None = PAIR,
        label: str | None = "gold",
        map_labels: dict[str, str] | None = None,
        **more: str | bytes,
    ) -> Set:
        for name, content in (files | {"other": b"", **more}).items():
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        problem = Regression() if labels is None else Classification(tuple(labels))
        return read_set(spec, columns, label, TableFormat(), problem, map_labels)

    return run


def answers(found: Set) -> list[Any]:
    return [example.accepted or example.answer for example in found[1]]


def test_a_file_like_the_main_data(read: Read) -> None:
    found = read("same.tsv", THREE)
    assert found == ("same", [Example(0, ("A a.", "B b."), "neutral")])
    assert read("mine=same.tsv", THREE)[0] == "mine"
    assert read(
        "./a=b.tsv", THREE, **{"a=b.tsv": "premise\thypothesis\tgold\nA\tB\tneutral\n"}
    ) == ("a=b", [Example(0, ("A", "B"), "neutral")])


def test_anli(read: Read) -> None:
    name, examples = read("anli:dev.jsonl", THREE)
    assert name == "anli"
    assert examples == [
        Example(0, ("Ann sings.", "Ann is heard."), "entailment"),
        Example(1, ("Ann sings.", "Ann is old."), "neutral"),
        Example(2, ("Ann sings.", "Ann is mute."), "contradiction"),
    ]
    assert read("R1=anli:dev.jsonl", THREE)[0] == "R1"


def test_hans(read: Read) -> None:
    name, examples = read("hans:hans.txt", THREE)
    assert name == "hans"
    assert examples == [
        Example(
            0,
            ("The judges saw him .", "He saw the judges ."),
            "non-entailment",
            ("contradiction", "neutral"),
        ),
        Example(1, ('The "judge" slept .', 'The "judge" slept .'), "entailment"),
    ]


@pytest.mark.parametrize(
    ("task", "columns", "labels", "wanted"),
    [
        ("sst2", ("sentence",), ["negative", "positive"], ["negative", "positive"]),
        ("sst2", ("sentence",), ["1", "0"], ["0", "1"]),
        ("sst2", ("1",), ["POS", "NEG"], ["NEG", "POS"]),
        ("qqp", ("a", "b"), ["0", "1"], ["0"]),
        ("mnli", PAIR, THREE, ["entailment", "neutral", "contradiction"]),
        ("mnli-mm", PAIR, ["c", "n", "e"], ["c"]),
        ("qnli", PAIR, ["entailment", "not_entailment"], ["not_entailment"]),
        ("rte", None, ["not_entailment", "entailment"], ["entailment"]),
    ],
)
def test_advglue(
    read: Read, task: str, columns: tuple[str, ...] | None, labels: list[str], wanted: list[str]
) -> None:
    name, examples = found = read(f"advglue:dev.json#{task}", labels, columns)
    assert name == f"advglue-{task}"
    assert answers(found) == wanted
    row = ADVGLUE[task][0]
    texts = [value.strip() for key, value in row.items() if isinstance(value, str)]
    assert list(examples[0].texts) == [text for text in texts if text != "textfooler"]


@pytest.mark.parametrize(
    ("spec", "labels", "wanted"),
    [
        # names come first, in capitals or not
        ("anli:dev.jsonl", ["e", "n", "c"], ["e", "n", "c"]),
        ("hans:hans.txt", ["Entailment", "Non-Entailment"], ["Non-Entailment", "Entailment"]),
        # then what is known to mean the same
        ("anli:dev.jsonl", ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], None),
        ("hans:hans.txt", ["entailment", "not_entailment"], ["not_entailment", "entailment"]),
        # a label that covers two, on either side
        ("hans:hans.txt", ["e", "n", "c"], [("n", "c"), "e"]),
        (
            "anli:dev.jsonl",
            ["entailment", "not_entailment"],
            ["entailment", "not_entailment", "not_entailment"],
        ),
    ],
)
def test_labels_are_matched(read: Read, spec: str, labels: list[str], wanted: Any) -> None:
    assert answers(read(spec, labels)) == (wanted or labels)


def test_labels_of_any_name_are_matched_by_it(read: Read) -> None:
    table = "premise\thypothesis\tgold\nA\tB\tSpam\nA\tB\tham\n"
    assert answers(read("same.tsv", ["ham", "spam"], **{"same.tsv": table})) == ["spam", "ham"]
    # One that is there in these very letters goes before one in others.
    assert answers(read("same.tsv", ["HAM", "ham", "Spam"], **{"same.tsv": table})) == [
        "Spam",
        "ham",
    ]


def test_labels_that_the_user_maps(read: Read) -> None:
    ways = {"non-entailment": "1, 2", "entailment": "0", "unheard": "of"}
    assert answers(read("hans:hans.txt", ["0", "1", "2"], map_labels=ways)) == [("1", "2"), "0"]
    # goes before a name, and a label may hold a comma
    ways = {"non-entailment": "no, never", "entailment": "no, never"}
    labels = ["entailment", "no, never"]
    assert answers(read("hans:hans.txt", labels, map_labels=ways)) == ["no, never"] * 2


def test_a_set_for_regression(read: Read) -> None:
    found = read("same.tsv", None, **{"same.tsv": "premise\thypothesis\tgold\nA\tB\t-1.5e0\n"})
    assert found[1] == [Example(0, ("A", "B"), "-1.5e0")]


@pytest.mark.parametrize(
    ("spec", "labels", "message"),
    [
        # Numbers of entailment's classes are in another order in every data set.
        (
            "anli:dev.jsonl",
            ["0", "1", "2"],
            "it is not known what 'e' is for the model: the set has e, n, c, the model has 0, 1, "
            "2; say which is which with --map-labels e=LABEL",
        ),
        ("advglue:dev.json#mnli", ["0", "1", "2"], "'entailment' is for the model"),
        ("anli:dev.jsonl", ["entailment", "neutral"], "'c' is for the model"),
        ("hans:hans.txt", ["positive", "negative"], "'non-entailment' is for the model"),
        (
            "same.tsv",
            ["0", "1"],
            "'neutral' is for the model: the set has neutral, the model has 0",
        ),
        ("anli:dev.jsonl", None, "anli has classes, but the model predicts numbers"),
        ("same.tsv", None, "the label of example 0 is 'neutral': it is no number"),
        ("nowhere.tsv", THREE, "nowhere.tsv does not exist"),
        ("anli:nowhere.jsonl", THREE, "nowhere.jsonl does not exist"),
        ("advglue:nowhere.json#rte", THREE, "nowhere.json does not exist"),
        ("x=", THREE, "'x=' names no file"),
        ("hans:", THREE, "'hans:' names no file"),
        ("hans:same.tsv", THREE, "same.tsv:1: there is no column sentence1"),
        ("advglue:dev.json", THREE, "it must be advglue:FILE#TASK, where TASK is one of sst2"),
        ("advglue:dev.json#cola", THREE, "it must be advglue:FILE#TASK"),
        ("advglue:dev.json#sst2", THREE, "an example has 1 text, one of the main data 2 texts"),
        ("advglue:same.tsv#rte", THREE, "same.tsv cannot be read as JSON"),
        ("advglue:other#rte", THREE, "other cannot be read as JSON"),
        ("anli:other", THREE, "there are no examples"),
    ],
)
def test_what_is_wrong_is_named(
    read: Read, spec: str, labels: list[str] | None, message: str
) -> None:
    with pytest.raises(UsageError) as error:
        read(spec, labels)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not AdvGLUE's dev.json: it holds no list under 'rte'"),
        ({"rte": 1}, "it holds no list under 'rte'"),
        ({"rte": []}, "there are no examples"),
        ({"rte": [3]}, "other: rte 0: an object is expected, not 3"),
        ({"rte": [{"sentence1": "a", "label": 0}]}, "rte 0: sentence2 must be a text, not null"),
        (
            {"rte": [{"sentence1": "a", "sentence2": "\ud83d", "label": 0}]},
            "sentence2 must be a text",
        ),
        (
            {"rte": [{"sentence1": "", "sentence2": "b", "label": 2}]},
            "rte 0: the label is 2: it must be from 0 to 1",
        ),
        ({"rte": [{"sentence1": "", "sentence2": "b", "label": True}]}, "the label is True"),
        ({"rte": [{"sentence1": "", "sentence2": "b"}]}, "the label is None"),
    ],
)
def test_a_broken_advglue_is_named(read: Read, content: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read("advglue:other#rte", THREE, other=json.dumps(content))
    assert message in str(error.value)


def test_bytes_that_are_no_text_are_named(read: Read) -> None:
    with pytest.raises(UsageError, match=r"other cannot be read as JSON: .*utf-8"):
        read("advglue:other#rte", THREE, other=b'{"rte": "\xff"}')


def test_a_label_map_that_leads_nowhere_is_named(read: Read) -> None:
    with pytest.raises(UsageError, match="--map-labels e=yes: the model has no label 'yes'"):
        read("anli:dev.jsonl", THREE, map_labels={"e": "yes"})


def test_the_variants_of_a_question_are_one_example_of_its_interval() -> None:
    """Five that are answered alike say no more than one; what counts is still each of them."""
    rng = np.random.default_rng(0)
    right = rng.random(100) < 0.6
    more = rng.integers(1, 3, 100)  # of them answered, on average with half of the words
    examples, found = [], []
    for question in range(100):
        for variant in range(5 if question else 1):
            name = f"{question:024x}-{variant}"
            examples.append(Example(len(examples), ("Who?", "Anna."), "", name=name))
            found.append({"correct": right[question], "f1": right[question] / more[question]})
    records = Records(SpanPrediction(), examples, [found])
    [accuracy, f1, *worst] = AdversarialSetPart(examples, variant="AddSent").measures(records)
    assert [one.key for one in worst] == ["set:AddSent.worst.correct", "set:AddSent.worst.f1"]
    for measure, key in ((accuracy, "correct"), (f1, "f1")):
        assert measure.meaning.endswith(" Over 496 variants of 100 questions.")
        [columns] = measure.checkpoints
        assert measure.statistic(*columns) == pytest.approx(np.mean([one[key] for one in found]))
        [alone] = (one.checkpoints for one in worst if one.key.endswith(key))
        drawn = bootstrap(measure.statistic, [columns], 500, seed=1)
        of_questions = bootstrap(mean, alone, 500, seed=1)
        assert interval(drawn) == pytest.approx(interval(of_questions), abs=0.01)
    single = Records(SpanPrediction(), examples[::5], [found[::5]])
    [accuracy, f1] = AdversarialSetPart(examples[::5], variant="AddSent").measures(single)
    assert accuracy.statistic is mean


def test_columns_are_needed_where_the_layout_is_not_known(read: Read) -> None:
    for columns, label in ((None, "gold"), (PAIR, None)):
        with pytest.raises(UsageError, match="name its columns with --columns and --label"):
            read("same.tsv", THREE, columns, label)
    assert len(read("anli:dev.jsonl", THREE, None, None)[1]) == 3
