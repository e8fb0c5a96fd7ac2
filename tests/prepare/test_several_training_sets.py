"""Several training sets: every row is there once, and a class has one name in all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_prepare import LAYOUTS as PAIRS
from test_prepare import jsonl, mnli, pairs
from test_published_layouts import LAYOUTS as CHOICES
from test_published_layouts import examples_of, prepare, rows, write  # noqa: F401

from alum_fairseq.data.record import DataRecord
from alum_fairseq.errors import UsageError
from alum_fairseq.prepare.labels import matched
from alum_fairseq.problems import Classification

FULL = {"c": "contradiction", "n": "neutral", "e": "entailment"}
FEVER = {
    f"{name}_fitems.jsonl": jsonl(*pairs("context", "query", *labels))
    for name, labels in {
        "train": ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO"),
        "dev": ("hidden",),
        "test": ("hidden",),
    }.items()
}
LAYOUT = {"FEVER-NLI": FEVER, **{name: files for name, (files, _) in (PAIRS | CHOICES).items()}}


def given(folder: Path, *names: str) -> list[Any]:
    folders = [write(folder / f"raw-{name}", LAYOUT[name]) for name in names]
    return ["--task", *names, "--input", *folders]


def labels_of(data: Path, split: str) -> list[str | None]:
    found = examples_of(data, split)
    assert {tuple(texts) for texts, _ in found} == {("a b", "c")}
    return [label for _, label in found]


def test_the_papers_anli_setting(prepare: Any, tmp_path: Path) -> None:  # noqa: F811
    """MNLI, SNLI, FEVER-NLI and ANLI; whichever is first names the classes."""
    assert prepare(*given(tmp_path, "ANLI", "MNLI", "SNLI", "FEVER-NLI")) == 0
    record = DataRecord.load(tmp_path / "data")
    assert record.problem == Classification(("c", "n", "e"))
    assert record.task == "ANLI+MNLI+SNLI+FEVER-NLI"
    mnli_snli = ["c", "e", "n"] * 2
    assert labels_of(tmp_path / "data", "train") == [*"cnecnecne", *mnli_snli, "e", "c", "n"]
    assert record.splits["train"].dropped == 2
    assert len(record.splits["train"].files) == 3 + 1 + 1 + 1
    valid = {name: labels_of(tmp_path / "data", name) for name in record.splits if "valid" in name}
    assert valid == {
        **{"valid": [*"enc"], "valid1": ["e"], "valid2": ["n"], "valid3": ["c"]},
        **{"valid4": ["n"], "valid5": ["e"], "valid6": ["n"]},
    }
    tests = {n: split.labelled for n, split in record.splits.items() if n.startswith("test")}
    assert tests == {
        **dict.fromkeys(("test", "test1", "test2", "test3", "test6"), True),
        **dict.fromkeys(("test4", "test5", "test7", "test8"), False),
    }

    assert prepare(*given(tmp_path, "FEVER-NLI", "ANLI"), output="turned") == 0
    expected = [FULL[x] for x in "ecn" + "cne" * 3]
    assert labels_of(tmp_path / "turned", "train") == expected
    valid = [labels_of(tmp_path / "turned", name) for name in ("valid", "valid1", "valid2")]
    assert valid == [[FULL[x] for x in each] for each in ("enc", "e", "n")]  # all are ANLI's


def test_sets_of_choices(prepare: Any, tmp_path: Path) -> None:  # noqa: F811
    assert prepare(*given(tmp_path, "SWAG", "HellaSwag")) == 0
    texts = examples_of(tmp_path / "data", "train")[0][0]
    assert examples_of(tmp_path / "data", "train") == rows(texts, "0", "2", "3", "0")
    assert len(texts) == 5


REFUSED = [
    (
        ["MNLI", "QQP"],
        "--task QQP: the label '0' is to match those of MNLI (contradiction, ",
    ),
    (
        ["QQP", "MNLI"],
        "--task MNLI: the label 'contradiction' is to match those of QQP (0, 1), but ",
    ),
    (["ANLI", "RTE"], "--task RTE: ANLI has no label 'entailment', but c, n, e: give one name"),
    (["MNLI", "SciTail"], "--task SciTail: MNLI has no label 'entails', but contradiction,"),
    (["HellaSwag", "COPA"], "--task HellaSwag COPA: these are not of one kind"),
    (["MNLI", "STS-B"], "--task MNLI STS-B: these are not of one kind"),
    (["SST-2", "QQP"], "--task SST-2 QQP: these are not of one kind"),
]


@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_sets_that_do_not_go_together(
    names: list[str],
    message: str,
    prepare: Any,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = given(tmp_path, *names)
    assert prepare(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert prepare(*arguments[:-1]) == 2
    message = f"--task {' '.join(names)} needs as many folders: --input has 1"
    assert message in capsys.readouterr().err


OWN = {
    "one.tsv": mnli(["sentence1", "sentence2", "gold_label"], *FULL.values()),
    "two.jsonl": jsonl(*pairs("sentence1", "sentence2", *"ecn", label="gold_label")),
    "dev.tsv": mnli(["sentence1", "sentence2", "gold_label"], "Neutral", "entailment"),
    "numbers.tsv": mnli(["sentence1", "sentence2", "gold_label"], "0", "1", "2"),
    "other.tsv": mnli(["sentence1", "sentence2", "gold_label"], "neutral", "unclear", "neutral"),
}


def own(folder: Path, *names: str) -> list[Any]:
    write(folder, OWN)
    files = [folder / name for name in names]
    return ["--train", *files, "--columns", "sentence1", "sentence2", "--label", "gold_label"]


def test_own_files(
    prepare: Any,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = own(tmp_path, "one.tsv", "two.jsonl")
    assert prepare(*arguments, "--valid", tmp_path / "dev.tsv") == 0
    expected = [*FULL.values(), *(FULL[x] for x in "ecn")]
    assert labels_of(tmp_path / "data", "train") == expected
    assert labels_of(tmp_path / "data", "valid") == ["neutral", "entailment"]
    record = DataRecord.load(tmp_path / "data")
    assert record.splits["train"].files == [str(tmp_path / n) for n in ("one.tsv", "two.jsonl")]
    capsys.readouterr()
    refused = {
        "numbers.tsv": "numbers.tsv:2: the label '0' is to match those of ",
        "other.tsv": "other.tsv:3: " + str(tmp_path / "one.tsv") + " has no label 'unclear', but ",
    }
    for name, message in refused.items():
        assert prepare(*own(tmp_path, "one.tsv", name), output="x") == 2
        assert message in capsys.readouterr().err
    labels = ["--labels", "contradiction", "neutral", "unclear", "entailment"]
    assert prepare(*own(tmp_path, "one.tsv", "other.tsv"), *labels, output="named") == 0
    assert DataRecord.load(tmp_path / "named").problem.labels == tuple(labels[1:])
    assert labels_of(tmp_path / "named", "train")[3:] == ["neutral", "unclear", "neutral"]
    (tmp_path / "words.conll").write_text("a O\n")
    assert prepare(*own(tmp_path, "one.tsv", "words.conll"), output="x") == 2
    assert "words.conll: these are not of one kind" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ("a b", "b a", "a b"),
        ("A b", "b a", "a b"),
        ("a A", "a A", "a A"),
        ("yes no", "n y", "y n"),
        ("pos neg", "negative positive", "positive negative"),
        ("b", "a b c", "b"),
        ("n p", "negative neutral positive", None),  # n may be either
        ("n", "neutral positive", None),  # not all have a partner
        ("entailment not_entailment", "c n e", None),
        ("1 10", "10 100", None),  # numbers are no beginnings
        ("1", "1 0", "1"),
        ("c", "a b", None),
    ],
)
def test_matched(labels: str, classes: str, expected: str | None) -> None:
    names = dict.fromkeys(labels.split(), "x.tsv:1")
    if expected is None:
        with pytest.raises(UsageError, match="first has no label"):
            matched(names, classes.split(), "first")
        return
    assert list(matched(names, classes.split(), "first").values()) == expected.split()
