"""Questions and tagged words: every published form, and one line for what is malformed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.places import ROOT
from support.token_data import write_vocabulary

from alum_fairseq.data.answers import read_squad, read_tagged
from alum_fairseq.data.record import DataRecord
from alum_fairseq.data.tables import Row, TableFormat, read_rows
from alum_fairseq.data.texts import read_texts
from alum_fairseq.errors import UsageError
from alum_fairseq.prepare.command import main
from alum_fairseq.prepare.datasets import KNOWN_TASKS
from alum_fairseq.problems import SequenceTagging, SpanPrediction, TokenProblem
from alum_fairseq.problems.span_prediction import gold_answers

SHARED = ROOT.parent / "shared" / "data"
CONTEXT = "  anna  in\u00a0paris , bert in rome "


def squad(*questions: dict[str, Any], context: str = CONTEXT) -> str:
    paragraphs = [{"context": context, "qas": list(questions)}]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def question(name: str = "q1", *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": " where ? ", "answers": found, **more}


def answers_of(path: Path) -> list[list[tuple[str, int]]]:
    return [gold_answers(str(label)) for _, _, label, _ in read_squad(path)]


def test_squad(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    asked = [
        question("a", ("paris", 11), ("in\u00a0paris", 8)),
        question("b", (" bert ", 18)),
        question("c", is_impossible=True, plausible_answers=[{"text": "x", "answer_start": 0}]),
        question("d"),
    ]
    path.write_text("\ufeff" + squad(*asked), encoding="utf-8")
    rows = list(read_squad(path))
    assert [row[3] for row in rows] == list("abcd")
    assert {row[1] for row in rows} == {(" where ? ", CONTEXT)}  # to the blank
    assert answers_of(path) == [[("paris", 11), ("in\u00a0paris", 8)], [("bert", 19)], [], []]
    assert all(CONTEXT.startswith(text, at) for of in answers_of(path) for text, at in of)


def test_json_lines_as_hugging_face_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    lines = [
        {"id": name, "question": "?", "context": CONTEXT, "answers": answers}
        for name, answers in (
            ("1", {"text": ["paris"], "answer_start": [11]}),
            ("2", {"text": [], "answer_start": []}),
        )
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert answers_of(path) == [[("paris", 11)], []]
    path.write_text(json.dumps({"question": "?", "context": "c"}))
    assert list(read_squad(path, optional=True)) == [(1, ("?", "c"), None, "1")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (squad(question("q7", ("rome", 3))), "question q7: its answer 'rome' does not stand at 3"),
        (squad(question("q7", ("rome", -3))), "does not stand at -3"),
        (squad(question("q7", ("", 3))), "its answer '' does not stand at 3"),
        (squad(question("q7"), question("q7")), "two questions have the id q7"),
        (squad({"question": "?", "answers": "x"}), "question 1: its answers need text and"),
        (squad({"question": 3, "answers": []}), "question must be a text, not 3"),
        (squad("x"), 'an object is expected, not "x"'),
        (squad(question(), context=None), "context must be a text, not null"),
        (squad(question(), context="\ud800"), "context must be a text"),
        ('{"data": [{"paragraphs": 3}]}', "is not SQuAD's JSON"),
        ('{"data": 3}', "is not SQuAD's JSON"),
        ("[1]", "a JSON object is expected, not [1]; write an object per line, not a list"),
        ("[" * 100_000, "this is not JSON: "),
        ("x", "this is not JSON"),
        ('{"question": "?"}', "context must be a text, not null"),
    ],
)
def test_broken_questions(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        list(read_squad(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


WANTED = [(("anna lives", "B-per O")), ("#", "O"), ("in rome", "O B-loc")]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("-DOCSTART- O\n\nanna B-per\nlives O\n\n# O\n\nin O\nrome B-loc\n", ("tokens", "tags")),
        ("anna\tB-per\nlives\tO\n\t\n#\tO\n\t\nin\tO\nrome\tB-loc\n\t\n", ("tokens", "tags")),
        (
            "anna N I B-per\r\nlives V x O\r\n\r\n# . . O\r\n \r\nin I x O\r\nrome N x B-loc",
            ("1", "4"),
        ),
        (
            "# id = 1\n1\tanna\tB-per\n2\tlives\tO\n\n1\t#\tO\n\n\n1\tin\tO\n2\trome\tB-loc\n",
            ("2", "3"),
        ),
        (
            '{"tokens": ["anna", "lives"], "tags": ["B-per", "O"]}\n{"tokens": [], "tags": []}\n'
            '{"tokens": ["#"], "tags": ["O"]}\n\n'
            '{"tokens": ["in", "rome"], "tags": ["O", "B-loc"]}',
            ("tokens", "tags"),
        ),
    ],
    ids=["blanks", "tabs and lone tabs", "four columns", "CoNLL-U", "JSON lines"],
)
def test_tagged_words(text: str, columns: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_bytes(text.encode())
    found = [(texts[0], tags) for _, texts, tags, _ in read_tagged(path, columns[:1], columns[1])]
    assert found == WANTED


def test_comments_and_no_break_spaces(tmp_path: Path) -> None:
    """As MultiCoNER (a comment with a tab), and others, have them, in four columns."""
    path = tmp_path / "train.conll"
    path.write_text(
        "# id 3\tdomain=en\nanna _ _ B-per\n# _ _ O\n\n# sent_id = 1\n# x\n10\u00a0000 X  _ O\n",
        encoding="utf-8",
    )
    found = [row[1:3] for row in read_tagged(path)]
    assert found == [(("anna #",), "B-per O"), (("10\u00a0000",), "O")]


def test_tags_may_be_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"tokens": ["anna", "lives"], "tags": [1, 0]}')
    assert [row[1:3] for row in read_tagged(path)] == [(("anna lives",), "1 0")]


def test_words_without_tags(tmp_path: Path) -> None:
    path = tmp_path / "test.conll"
    path.write_text("anna\nlives\n\nrome\n")
    table = TableFormat()
    rows = list(read_rows(path, table, ["tokens"], "tags", label_optional=True))
    assert rows == [Row(1, ("anna lives",), None), Row(4, ("rome",), None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anna\nlives O\n", "train.conll:1: there is no column 2, only 1, in 'anna': a line"),
        ("anna O\nlives\n", "train.conll:2: the number of columns is 1, but 2 in line 1: 'lives'"),
        ("anna O\n#lives\n", "train.conll:2: the number of columns is 1, but 2 in line 1: '#live"),
        ("# x\nanna\tO\nlives\tx\tO\n", "train.conll:3: the number of columns is 3, but 2 in li"),
        ("anna\tO\nnew york\tO\n", "train.conll:2: a word, or a tag, is empty or holds a blank"),
        ("anna\t\nrome\tO\n", "train.conll:1: a word, or a tag, is empty"),
        ('{"tokens": ["a"], "tags": []}', "train.conll:1: there are 1 tokens, but 0 tags"),
        ('{"tokens": ["a b"], "tags": ["O"]}', "tokens must be a list of words without blanks"),
        ('{"tokens": ["\\ud83d"], "tags": ["O"]}', "tokens must be a list of words without blanks"),
        ('{"tokens": [1], "tags": ["O"]}', "tokens must be a list of words without blanks"),
        ('{"tokens": ["a"], "tags": [true]}', "tags must be a list of words without blanks"),
        ('{"tokens": "a", "tags": ["O"]}', "tokens must be a list of words without blanks"),
        (
            '{"words": ["a"], "tags": ["O"]}',
            "train.conll:1: there is no tokens: there are words, t",
        ),
    ],
)
def test_broken_tags(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        list(read_tagged(path))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("suffix", "options", "message"),
    [
        ("conll", "--label 3", "x.conll:1: there is no column 3, only 2, in 'anna B-per'"),
        ("conll", "--columns 3", "x.conll:1: there is no column 3, only 2, in 'anna B-per'"),
        ("conll", "--columns 2", "x.conll: words and tags are both column 2: say by --columns"),
        ("conll", "--label 1", "x.conll: words and tags are both column 1: say by --columns"),
        *(
            ("conll", option, f"there is no column {option.split()[1]} in ")
            for option in ("--label ner", "--label 0", "--columns word", "--columns 0")
        ),
        ("conll", "--columns 1 2", "--columns 1 2: the words of "),
        ("jsonl", "--format conll --label tokens", "x.jsonl: words and tags are both tokens: say"),
        ("jsonl", "--format conll --label 2", "x.jsonl:1: there is no 2: there are tokens, tags"),
        *(
            ("json", f"{columns} --format squad", "x.json: questions are read from question and c")
            for columns in ("--columns a b", "--label a")
        ),
        ("json", "--columns a", "give --label, or "),
        ("json", "--columns context a --label l", "x.json:1: there is no context: there are versi"),
    ],
)
def test_columns_that_are_not_there(
    suffix: str,
    options: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"x.{suffix}"
    lists = '{"tokens": ["anna", "lives"], "tags": ["B-per", "O"]}\n'
    path.write_text({"conll": TAGGED, "jsonl": lists}.get(suffix) or squad(question()))
    command = ["--train", path, "--vocabulary", write_vocabulary(tmp_path / "v")]
    command += ["--output", tmp_path / "data", *options.split()]
    assert main([*map(str, command)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("form", "text"), [("conll", "anna O\n"), ("squad", squad(question()))])
def test_from_standard_input(
    form: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text(text)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    columns, label = {
        "conll": (SequenceTagging.columns, "tags"),
        "squad": (SpanPrediction.columns, "answers"),
    }[form]
    piped, read = (
        list(read_rows(path, TableFormat(form), columns, label))
        for path in (Path("-"), tmp_path / "x")
    )
    assert piped == read


KNOWN = {name for name, plan in KNOWN_TASKS.items() if isinstance(plan.problem, TokenProblem)}
TAGGED = "anna B-per\nlives O\n\nrome B-loc\n"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_by_name(name: str, tmp_path: Path) -> None:
    """The files as their authors publish them; and read again, to the character."""
    plan = KNOWN_TASKS[name]
    spans = isinstance(plan.problem, SpanPrediction)
    raw = tmp_path / "raw"
    raw.mkdir()
    text = squad(question("a", ("paris", 11)), *([question("b")] if "2.0" in name else []))
    for source in plan.sources.values():
        (raw / str(source.files[0]).split("|")[0]).write_text(text if spans else TAGGED)
    command = ["--task", name, "--input", raw, "--vocabulary", write_vocabulary(tmp_path / "v")]
    command += ["--doc-stride", 3] if spans else []
    assert main([*map(str, command), "--output", str(tmp_path / "data")]) == 0
    record = DataRecord.load(tmp_path / "data")
    assert record.problem.unanswerable == ("2.0" in name) if spans else True
    assert record.task == name
    assert list(record.splits) == list(plan.sources)
    problem = record.problem
    assert isinstance(problem, TokenProblem)
    rows = read_texts(tmp_path / "data", "valid", problem)
    # <s> anna lives </s>; of a question </s> </s> between it and its context.
    words = len(f"where ? {CONTEXT}".split()) if spans else 2
    assert record.splits["train"].length >= words + (4 if spans else 2)
    if spans:
        assert rows[0].texts == (" where ? ", CONTEXT)
        assert (rows[0].name, gold_answers(str(rows[0].label))) == ("a", [("paris", 11)])
        assert problem == SpanPrediction(doc_stride=3, unanswerable="2.0" in name)
    else:
        assert [(row.texts, row.label) for row in rows] == [
            (("anna lives",), "B-per O"),
            (("rome",), "B-loc"),
        ]
        assert problem == SequenceTagging(("O", "B-loc", "B-per"))
        assert record.splits["train"].label_counts == {"O": 1, "B-loc": 1, "B-per": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "a", "b"], "--labels does not go with --format squad: leave it out"),
        (["--doc-stride", "-1"], "--doc-stride is -1: it must be 0 or more"),
        (["--max-positions", "5"], "--max-positions is 5: it must be 8 or more"),
        (["--max-positions", "8"], "--doc-stride is 128: an input has room for"),
        (["--format", "tsv"], "give --columns"),
        (["--format", "conll", "--max-question", "3"], "--max-question is for questions"),
    ],
)
def test_wrong_usage(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.json"
    path.write_text(squad(question("a", ("paris", 11))), encoding="utf-8")
    command = ["--train", path, "--vocabulary", write_vocabulary(tmp_path / "v")]
    assert main([*map(str, command), "--output", str(tmp_path / "data"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("file", "count", "one"),
    [("xquad_en/xquad.en.json", 1190, True), ("policyqa/dev.json", 3809, False)],
)
def test_published_questions(file: str, count: int, one: bool) -> None:
    if not (SHARED / file).is_file():
        pytest.skip(f"{SHARED} (real data) is absent")
    rows = list(read_squad(SHARED / file))
    assert len(rows) == count
    for _, (_, context), label, _ in rows:
        for text, start in gold_answers(str(label)):
            assert context[start : start + len(text)] == text
    assert all(len(gold_answers(str(row[2]))) == 1 for row in rows) == one


def test_published_tags() -> None:
    if not (SHARED / "wnut17").is_dir():
        pytest.skip(f"{SHARED} (real data) is absent")
    files = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    counts = [len(list(read_tagged(SHARED / "wnut17" / file))) for file in files]
    assert counts == [3394, 1009, 1287]
