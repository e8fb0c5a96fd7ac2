"""Rows of tables: what is read, and what is said of the rows that are bad."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alum_fairseq import UsageError
from alum_fairseq.data.tables import (
    Row,
    TableFormat,
    add_table_options,
    has_header,
    read_rows,
    table_format,
)
from alum_fairseq.files import STDIN


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """Writes a file, and reads it."""

    def read(name: str, content: str | bytes, *columns: str, **options: Any) -> list[Row]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        format = TableFormat(options.pop("kind", None), options.pop("header", None))
        return list(read_rows(path, format, columns, options.pop("label", None), **options))

    return read


GOOD = {
    "names.tsv": ("text\tlabel\nA a\t1\n\tB\t0\n".replace("\tB", " B"), ("text",), "label"),
    "numbers.tsv": ("A a\t1\nB\t0\n", ("1",), "2"),
    "other_order.tsv": ("1\tx\tA a\n0\ty\tB\n", ("3",), "1"),
    "windows.tsv": ("\ufefftext\tlabel\r\nA a\t1\r\nB\t0\r\n", ("text",), "label"),
    "quotes.csv": ('text,label\n"A a",1\nB,"0"\n', ("text",), "label"),
    "windows.csv": ("\ufefftext,label\r\nA a,1\r\nB,0\r\n", ("text",), "label"),
    "blank_end.tsv": ("A a\t1\nB\t0\n\n \n", ("1",), "2"),
    "blank_end.csv": ("A a,1\nB,0\n\n", ("1",), "2"),
    "blank_rows.csv": ("text,label\nA a,1\nB,0\n,\n , ,\n", ("text",), "label"),
    "keys.jsonl": (
        '{"text": "A a", "label": 1}\n{"label": "0", "text": "B"}\n',
        ("text",),
        "label",
    ),
    "keys.ndjson": ('\ufeff{"1": "A a", "2": 1}\r\n{"2": 0, "1": "B"}\r\n\r\n', ("1",), "2"),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_reads_the_same(name: str, table: Any) -> None:
    content, columns, label = GOOD[name]
    rows = table(name, content, *columns, label=label)
    assert [(row.texts, row.label) for row in rows] == [(("A a",), "1"), (("B",), "0")]


def test_lines_are_those_of_the_file(table: Any) -> None:
    assert [row.line for row in table("a.tsv", "t\tl\na\t1\nb\t2\n", "t")] == [2, 3]
    assert [row.line for row in table("a.tsv", "a\t1\nb\t2\n", "1")] == [1, 2]
    several = table("a.csv", 't,l\n"two\nlines",1\nb,2\n', "t", label="l")
    assert several == [Row(2, ("two\nlines",), "1"), Row(4, ("b",), "2")]


QUOTED = 'text\tlabel\n"He said ""hi"""\t1\nplain "text"\t0\n"two\nlines, a\ttab"\t1\n""""\t0\n'


def test_quoted_fields(table: Any) -> None:
    """As pandas and spreadsheets write them."""
    rows = table("a.tsv", QUOTED, "text", label="label", kind="quoted-tsv")
    texts = ['He said "hi"', 'plain "text"', "two\nlines, a\ttab", '"']
    assert [row.texts[0] for row in rows] == texts
    assert [row.label for row in rows] == ["1", "0", "1", "0"]
    assert rows[3].line == 6
    message = "a.tsv:2: fields are in quotation marks here, and 1 lines after it: give --format q"
    with pytest.raises(UsageError, match=message):
        table("a.tsv", QUOTED, "text", label="label")
    for first in ('"text"\t"label"\n', '"a film"\t"1"\n'):  # all fields, as R writes them
        with pytest.raises(UsageError, match=r"a\.tsv:1: fields are in quotation marks here: give"):
            table("a.tsv", first + "a\t1\n", "1", label="2")
    for broken in ('1\ta\n1\t"two\nlines"\n', 'a\t1\n"two\nlines"\t1\n'):
        with pytest.raises(UsageError, match="1 field where line 1 has 2; --format quoted-tsv"):
            table("a.tsv", broken, "1", "2")
    with pytest.raises(UsageError, match=r"a\.tsv:2: this is not quoted TSV: "):
        table("a.tsv", 't\tl\n"b"x\t1\n', "t", kind="quoted-tsv")
    # With --format tsv they are text, as in GLUE; so are an author's own.
    assert table("a.tsv", 'a ""b""\t1\n"""a"""\t1\n', "1", kind="tsv")[1].texts == ('"""a"""',)
    own = 'a\t1\n"Yes," he said. "No."\t1\n"Hello"\t1\n12" and 14"\t0\n""\t0\n'
    assert [row.texts[0] for row in table("a.tsv", own, "1", label="2")][1:] == [
        *('"Yes," he said. "No."', '"Hello"', '12" and 14"', '""')
    ]


def test_fields_with_a_comma_in_quotation_marks(table: Any) -> None:
    """Excel's "Text (tab delimited)" has marks around these alone, and no author around all."""
    excel = 'text\tlabel\r\n"Great, really"\tpos\r\nBad\tneg\r\n"No, thanks"\tneg\r\n'
    with pytest.raises(UsageError, match=r"a\.tsv: the fields with a comma are all in quotation"):
        table("a.tsv", excel, "text", label="label")
    texts = [row.texts[0] for row in table("a.tsv", excel, "text", kind="quoted-tsv")]
    assert texts == ["Great, really", "Bad", "No, thanks"]
    assert table("a.tsv", excel, "text", kind="tsv")[0].texts == ('"Great, really"',)
    for own in ("Yes, no", '"Yes," he said. "No."'):
        assert len(table("a.tsv", f"{excel}{own}\tpos\n", "text")) == 4
    assert len(table("a.tsv", excel.replace("No,", "No"), "text")) == 3


def test_what_pythons_csv_module_writes_with_tabs_is_read(tmp_path: Path) -> None:
    rows = [("a", '"'), ('He said "hi"', "1"), ("\t", "two\r\nlines"), ('""', "'")]
    with (tmp_path / "a.tsv").open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows(rows)
    found = read_rows(tmp_path / "a.tsv", TableFormat("quoted-tsv"), ("1", "2"))
    assert [row.texts for row in found] == [tuple(map(str.strip, row)) for row in rows]


def test_only_a_line_feed_ends_a_line_and_quotes_are_text_in_tsv(table: Any) -> None:
    [row] = table("a.tsv", 'a\u2028b\x85c\x0bd "e\t"f\n', "1", "2")
    assert row.texts == ('a\u2028b\x85c\x0bd "e', '"f')


@given(
    st.lists(st.tuples(st.text(), st.text(), st.text(min_size=1)), min_size=1, max_size=5).filter(
        lambda rows: all(row[2].strip() and "\0" not in "".join(row) for row in rows)
    )
)
def test_what_pythons_own_writers_write_is_read(rows: list[tuple[str, str, str]]) -> None:
    import tempfile

    rows = [tuple(cell.encode(errors="replace").decode() for cell in row) for row in rows]
    expected = [(tuple(text.strip() for text in row[:2]), row[2].strip()) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
        found = read_rows(path, TableFormat(), ("a", "b"), "c")
        assert [(row.texts, row.label) for row in found] == expected
        path = Path(folder, "a.jsonl")
        lines = (json.dumps(dict(zip("abc", row, strict=True))) + "\n" for row in rows)
        path.write_text("".join(lines))
        found = read_rows(path, TableFormat(), ("a", "b"), "c")
        assert [(row.texts, row.label) for row in found] == expected


BAD = [
    ("a.tsv", "a\t1\nb\n", ("1",), {"label": "2"}, "a.tsv:2: 1 field where line 1 has 2"),
    ("a.tsv", "t\tl\nb\t1\t2\n", ("t",), {}, "a.tsv:2: 3 fields where line 1 has 2"),
    ("a.csv", 't,l\n"b,1\n', ("t",), {}, "a.csv:2: this is not CSV: unexpected end of data"),
    ("a.csv", 't,l\n"b"x,1\n', ("t",), {}, "a.csv:2: this is not CSV: "),
    ("a.tsv", "t\tl\nb\t\n", ("t",), {"label": "l"}, r"a.tsv:2: the label \(column l\) is empty"),
    ("a.tsv", "t\tl\nb\t1\n", ("x",), {}, "a.tsv:1: there is no column x, but t, l"),
    (
        *("a.tsv", "b\t1\n", ("x",), {}),
        "no column x, but b, 1; if that is an example, number the columns, as in --columns 1",
    ),
    ("a.tsv", "b\t1\n", ("3",), {}, "a.tsv:1: there is no column 3, only 2"),
    ("a.tsv", "b\t1\n", ("0",), {}, "there is no column 0: columns count from 1"),
    ("a.tsv", "t\tt\nb\t1\n", ("t",), {}, "a.tsv:1: 2 columns are called t: give the number"),
    *(
        (name, content, columns, {"label": label}, f"{name}:1: {both} name the same column: every")
        for name, content, columns, label, both in (
            ("a.tsv", "t\tl\nb\t1\n", ("t", "l"), "l", "l and l"),
            ("a.tsv", "t\tl\nb\t1\n", ("2",), "l", "2 and l"),
            ("a.csv", "t,l\nb,1\n", ("t+l",), "2", r"t\+l and 2"),
            ("a.csv", "t,l\nb,1\n", ("t", "1"), None, "t and 1"),
            ("a.jsonl", '{"t": "a", "l": "1"}\n', ("t", "l"), "l", "l and l"),
            ("a.jsonl", '{"t": "a", "l": "1"}\n', ("t", "t"), "l", "t and t"),
        )
    ),
    ("a.tsv", "b\t1\n\nc\t1\n", ("1",), {}, "a.tsv:2: the line is empty"),
    ("a.csv", "t,l\n,\nb,1\n", ("t",), {}, "a.csv:2: the line is empty"),
    ("a.tsv", b"a\t1\n\xff\t1\n", ("1",), {}, "a.tsv:2: the text is not in UTF-8"),
    ("a.csv", b"a,1\n\xff,1\n", ("1",), {}, "a.csv:2: the text is not in UTF-8"),
    ("a.tsv", "t\tl\n", ("t",), {"header": False}, "column t is a name, but --no-header says"),
    ("a.jsonl", '{"t": "a"}\n{"t"}\n', ("t",), {}, "a.jsonl:2: this is not JSON"),
    ("a.jsonl", "[" * 100_000, ("t",), {}, "a.jsonl:1: this is not JSON"),
    ("a.jsonl", '["a"]\n', ("t",), {}, r'a.jsonl:1: a JSON object is expected, not \["a"\]; '),
    (
        "a.jsonl",
        '[\n{"t": "a"}]',
        ("t",),
        {},
        "a.jsonl:1: this is not .* an object per line, not a",
    ),
    ("a.jsonl", '{"t": ' + "1" * 5000 + "}", ("t",), {}, "a.jsonl:1: this is not JSON: Exceeds"),
    ("a.jsonl", '{"x": "a"}\n', ("t",), {}, "a.jsonl:1: there is no t: there are x"),
    ("a.jsonl", '{"t": 1}\n', ("t",), {}, "a.jsonl:1: t must be a text, not 1"),
    ("a.jsonl", '{"t": "\\ud800"}\n', ("t",), {}, "a.jsonl:1: t holds half a character"),
    ("a.jsonl", '{"t": "a"}\n', ("t",), {"label": "l"}, "a.jsonl:1: there is no l"),
    ("a.jsonl", '{"t": "a", "l": [1]}\n', ("t",), {"label": "l"}, "a.jsonl:1: l must be a text or"),
    ("a.jsonl", '{"t": "a"}\n', ("t",), {"header": True}, "--header is for TSV and CSV"),
    ("a.txt", "a\n", ("1",), {}, "a.txt: its name does not tell its format: give --format"),
]


@pytest.mark.parametrize(("name", "content", "columns", "options", "message"), BAD)
def test_bad_rows_are_named(
    name: str, content: Any, columns: Any, options: Any, message: str, table: Any
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        table(name, content, *columns, **options)
    assert "\n" not in str(caught.value)


def test_two_texts_may_share_a_part(table: Any) -> None:
    [row] = table("a.csv", "q,a,b,l\nWhy?,x,y,1\n", "q+a", "q+b", label="l")
    assert row.texts == ("Why? x", "Why? y")


def test_the_rows_before_a_bad_one_come_first(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\t1\nb\n")
    rows = read_rows(tmp_path / "a.tsv", TableFormat(), ("1",))
    assert next(rows).texts == ("a",)
    with pytest.raises(UsageError):
        next(rows)


def test_optional_labels(table: Any) -> None:
    options = {"label": "l", "label_optional": True}
    assert table("a.tsv", "t\tl\na\t\nb\t1\n", "t", **options) == [
        Row(2, ("a",), None),
        Row(3, ("b",), "1"),
    ]
    assert table("a.tsv", "i\tt\n0\ta\n", "t", **options) == [Row(2, ("a",), None)]
    assert table("a.tsv", "a\nb\n", "1", label="2", label_optional=True)[1].label is None
    assert table("a.jsonl", '{"t": "a"}\n{"t": "b", "l": null}\n', "t", **options) == [
        Row(1, ("a",), None),
        Row(2, ("b",), None),
    ]
    with pytest.raises(UsageError, match="there is no column t"):
        table("a.tsv", "i\tl\n0\t1\n", "t", **options)


def test_an_empty_label_may_stand_for_none(tmp_path: Path) -> None:
    table = TableFormat(no_label="")
    for name, content in (
        ("a.tsv", "t\tl\na\t\nb\t1\n"),
        ("a.jsonl", '{"t": "a", "l": null}\n{"t": "b", "l": 1}\n'),
        ("b.jsonl", '{"t": "a"}\n{"t": "b", "l": 1}\n'),
    ):
        (tmp_path / name).write_text(content)
        rows = list(read_rows(tmp_path / name, table, ("t",), "l"))
        assert [row.label for row in rows] == ["", "1"]
    with pytest.raises(UsageError, match="there is no column x"):
        list(read_rows(tmp_path / "a.tsv", table, ("t",), "x"))


def test_rows_of_another_width_can_be_skipped(table: Any) -> None:
    skipped: list[int] = []
    rows = table("a.tsv", "a\t1\nb\nc\t1\n\tx\t\n", "1", skip=skipped.append)
    assert [row.texts for row in rows] == [("a",), ("c",)]
    assert skipped == [2, 4]


def test_json_labels(table: Any) -> None:
    lines = [{"t": "a", "l": label} for label in ("x", 1, 2.5, True)]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    assert [row.label for row in table("a.jsonl", content, "t", label="l")] == [
        *("x", "1", "2.5", "true")
    ]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def type_in(text: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))

    type_in(b"a\t1\nb\t2\n")
    rows = list(read_rows(STDIN, TableFormat("tsv"), ("1",), "2"))
    assert rows == [Row(1, ("a",), "1"), Row(2, ("b",), "2")]
    type_in(b"a\t1\nb\n")
    with pytest.raises(UsageError, match="standard input:2: 1 field"):
        list(read_rows(STDIN, TableFormat("tsv"), ("1",)))
    with pytest.raises(UsageError, match="standard input: its name does not tell its format"):
        list(read_rows(STDIN, TableFormat(), ("1",)))


def test_files(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "x", "does not exist")):
        with pytest.raises(UsageError, match=message):
            list(read_rows(path, TableFormat("tsv"), ("1",)))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=("a\t1\n",)).start()
    assert list(read_rows(pipe, TableFormat("tsv"), ("1",))) == [Row(1, ("a",), None)]


@pytest.mark.parametrize(
    ("words", "columns", "header"),
    [
        ([], ["1", "2"], False),
        ([], ["text", "2"], True),
        (["--header"], ["1", "2"], True),
        (["--no-header"], ["1", "2"], False),
        (["--header"], ["text", "2"], True),
    ],
)
def test_a_header_is_where_a_column_is_named_or_where_one_is_said_to_be(
    words: list[str], columns: list[str], header: bool
) -> None:
    parser = argparse.ArgumentParser()
    add_table_options(parser)
    arguments = parser.parse_args([*words, "--columns", *columns, "--format", "csv"])
    assert arguments.columns == columns
    assert table_format(arguments).format == "csv"
    assert has_header(table_format(arguments), columns) is header


def test_long_fields(table: Any) -> None:
    text = "word " * 100_000
    assert table("a.csv", f't\n"{text}"\n', "t")[0].texts == (text.strip(),)
