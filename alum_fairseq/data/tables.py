"""Rows of texts and labels from TSV, CSV and JSON-lines; errors name the file and the line."""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from alum_fairseq.data.answers import read_squad, read_tagged
from alum_fairseq.data.columns import check_lists, examples_in, joined, object_in, parts, value_at
from alum_fairseq.errors import UsageError
from alum_fairseq.files import existing_file, opened, shown
from alum_fairseq.problems import SpanPrediction

FORMATS = ("tsv", "quoted-tsv", "csv", "jsonl", "squad", "conll")

_SUFFIXES = {
    **{".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".conll": "conll", ".bio": "conll", ".iob": "conll"},
}


_QUOTED = re.compile('"[^"]*"')


@dataclass(frozen=True)
class TableFormat:
    """How a file is divided into fields.

    Attributes:
        format: ``tsv`` (every tab separates, quotation marks are text, as in GLUE),
            ``quoted-tsv`` and ``csv`` (fields may be in double quotes), ``jsonl`` (one object per
            line), or None to go by the file's suffix, but to refuse a ``.tsv`` with quoted fields.
        header: whether the first line holds the names of the columns; None means yes if any column
            is given by name. JSON-lines have no header.
        of_json: the format of a ``.json`` file.
        no_label: the label that stands for a missing one; "": none, or JSON's null.
    """

    format: str | None = None
    header: bool | None = None
    of_json: str = "squad"
    no_label: str | None = None

    def form_of(self, path: Path) -> str | None:
        """The format of a file, if it is known."""
        return self.format or {**_SUFFIXES, ".json": self.of_json}.get(path.suffix.lower())

    def format_of(self, path: Path) -> str:
        """The format of a file; a UsageError if neither an option nor the suffix tells it."""
        known = self.form_of(path)
        if known is None:
            if path.is_dir():
                existing_file(path)  # says so
            raise UsageError(
                f"{shown(path)}: its name does not tell its format: give --format "
                f"{{{','.join(FORMATS)}}}"
            )
        return known


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        line: line of the file at which it begins, from 1.
        texts: its text columns, without surrounding whitespace.
        label: its label column, likewise; None if there is none, but "" where that stands for it.
        name: what its author calls it (the id of a question), or None.
    """

    line: int
    texts: tuple[str, ...]
    label: str | None
    name: str | None = None


def read_rows(
    path: Path,
    table: TableFormat,
    columns: Sequence[str],
    label: str | None = None,
    *,
    label_optional: bool = False,
    whole: bool = False,
    skip: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        path: a file in UTF-8 (with or without a byte order mark), or ``files.STDIN``.
        table: its format.
        columns: columns of the texts: names, or numbers from 1; ``a+b`` joins two. In JSON-lines
            always keys, or paths of keys and numbers from 0, where ``*`` makes every entry of a
            list an example: ``passage.questions.*.question``.
        label: column of the label, or None.
        label_optional: accept an absent label column and empty labels, as no label.
        whole: refuse a TSV or CSV that has other columns besides these.
        skip: called with the line of each row that has too few or too many fields, which is then
            left out; if None, such a row is an error.

    Raises:
        UsageError: a row is malformed; the message begins with ``file:line``.
    """
    kind = table.format_of(path)
    if kind in ("squad", "conll"):
        read = read_squad if kind == "squad" else read_tagged
        yield from (Row(*each) for each in read(path, columns, label, label_optional))
        return
    may_be_empty = table.no_label == ""
    if kind == "jsonl":
        if table.header is not None:
            option = "--header" if table.header else "--no-header"
            raise UsageError(
                f"{option} is for TSV and CSV: JSON-lines name their columns in each line"
            )
        records = _objects(path, columns, label, label_optional or may_be_empty)
    else:
        records = _fields(path, table, columns, label, label_optional, whole, skip)
    for line, values in records:
        *texts, found = values if label is not None else [*values, None]
        found = None if found is None else found.strip()
        if label is not None and not found and not label_optional and not may_be_empty:
            raise UsageError(
                f"{shown(path)}:{line}: the label (column {label}) is empty; if that means that "
                "there is none, give --no-label ''"
            )
        found = found or ("" if may_be_empty else None)
        yield Row(line, tuple(text.strip() for text in texts), found)


def has_header(table: TableFormat, columns: Sequence[str]) -> bool:
    """Whether the first line of a TSV or CSV holds column names, given the columns to read.

    Raises:
        UsageError: a column is given by name although there are no names, or as the number 0.
    """
    columns = [part for column in columns for part in parts(column)]
    for column in columns:
        if column.isdecimal() and int(column) == 0:
            raise UsageError("there is no column 0: columns count from 1")
    names = [column for column in columns if not column.isdecimal()]
    if names and table.header is False:
        raise UsageError(
            f"column {names[0]} is a name, but --no-header says that the file has no names: "
            "give the number of the column, from 1"
        )
    return bool(names) if table.header is None else table.header


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has for reading tables."""
    group = parser.add_argument_group("how tables are read")
    group.add_argument(
        "--columns",
        nargs="+",
        metavar="COLUMN",
        help="columns of the texts: names, or numbers from 1 (in JSON-lines: keys, or paths such "
        "as choices.0.text); a+b joins two",
    )
    group.add_argument("--label", metavar="COLUMN", help="column of the label, likewise")
    group.add_argument(
        "--no-label",
        metavar="LABEL",
        help="what stands for a missing label, such as -1, or '' for an empty one: such a row is "
        "left out, or read without a label where none is needed",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the files (default: by their suffix); quotation marks are text in tsv, and "
        "may surround fields in quoted-tsv (as pandas and spreadsheets write them) and csv; squad "
        "(.json, unless --columns and --label name others): questions on contexts, as SQuAD has "
        "them; conll (.conll): tagged words",
    )
    header = group.add_mutually_exclusive_group()
    header.add_argument(
        "--header",
        action="store_true",
        default=None,
        help="the first line holds the columns' names (default: if a column is given by name)",
    )
    header.add_argument(
        "--no-header",
        dest="header",
        action="store_false",
        default=None,
        help="the first line is an example",
    )


def table_format(arguments: argparse.Namespace) -> TableFormat:
    """The format that the options of :func:`add_table_options` describe."""
    given = {*(arguments.columns or ()), arguments.label} - {None}
    of_questions = given <= {*SpanPrediction.columns, SpanPrediction.label_column}
    of_json = "squad" if of_questions else "jsonl"
    return TableFormat(arguments.format, arguments.header, of_json, arguments.no_label)


def _fields(
    path: Path,
    table: TableFormat,
    columns: Sequence[str],
    label: str | None,
    label_optional: bool,
    whole: bool,
    skip: Callable[[int], None] | None,
) -> Iterator[tuple[int, list[str | None]]]:
    """The wanted fields of each row of a TSV or CSV; None for an optional column that is absent."""
    wanted = [*columns, *([] if label is None else [label])]
    optional = label if label_optional else None
    named = has_header(table, wanted)
    kind = table.format_of(path)
    with opened(path) as stream:
        lines = _decoded(path, stream)
        if kind == "tsv":
            split = _split_tsv(path, lines, check=table.format is None)
        else:
            split = _split_csv(path, lines, "," if kind == "csv" else "\t")
        rows = _without_blank_lines(path, split)
        first = next(rows, None)
        if first is None:
            return
        names = [name.strip() for name in first[1]] if named else None
        width = len(first[1])
        if whole and _is_json("\t".join(first[1])):
            raise UsageError(
                f"{shown(path)}:{first[0]}: this is JSON: give --format jsonl, or --columns 1 to "
                "read it as text"
            )
        if whole and width > len(wanted):
            raise UsageError(
                f"{shown(path)}:{first[0]}: there are {width} columns, where {len(wanted)} should "
                "be: say by --columns which to read"
            )
        places = [
            [_find_column(path, part, names, width, column == optional) for part in each]
            for column, each in ((column, parts(column, names or ())) for column in wanted)
        ]
        _check_apart(f"{shown(path)}:{first[0]}", wanted, places, label)
        before: list[str] = []
        for line, fields in rows if named else chain([first], rows):
            if len(fields) == width:
                before = fields
                yield (
                    line,
                    [None if None in at else joined([fields[i] for i in at]) for at in places],
                )
            elif skip is not None:
                skip(line)
            else:
                fields_found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                broken = kind == "tsv" and any('"' in field for field in [*before, *fields])
                hint = "; --format quoted-tsv reads a line break in quotation marks"
                raise UsageError(
                    f"{shown(path)}:{line}: {fields_found} where line {first[0]} has {width}"
                    f"{hint if broken else ''}"
                )


def _check_apart(
    where: str, wanted: Sequence[str], places: Sequence[list[Any]], label: str | None
) -> None:
    """Raise a UsageError if two columns are at one place, or the label is a part of a text."""
    for i, one in enumerate(wanted):
        for j in range(i):
            shared = set(places[i]) & set(places[j])
            if places[i] == places[j] or (shared and one == label):
                raise UsageError(
                    f"{where}: {wanted[j]} and {one} name the same column: every text, and the "
                    "label, must have a column of its own"
                )


def _find_column(
    path: Path, column: str, names: list[str] | None, width: int, optional: bool
) -> int | None:
    """The index of a column, from 0; None if it is absent and optional."""
    if column.isdecimal():
        places = [int(column) - 1] if int(column) <= width else []
        there_are = f"only {width}"
    else:
        places = [i for i, name in enumerate(names or []) if name == column]
        there_are = f"but {', '.join(names or [])}"
    if len(places) > 1:
        raise UsageError(
            f"{shown(path)}:1: {len(places)} columns are called {column}: give the number of one"
        )
    if not places and not optional:
        hint = "; if that is an example, number the columns, as in --columns 1 --label 2"
        hint = "" if column.isdecimal() else hint
        raise UsageError(f"{shown(path)}:1: there is no column {column}, {there_are}{hint}")
    return places[0] if places else None


def _objects(
    path: Path, columns: Sequence[str], label: str | None, label_optional: bool
) -> Iterator[tuple[int, list[str | None]]]:
    """The wanted values of each example of a JSON-lines file."""
    wanted = [*columns, *([] if label is None else [label])]
    with opened(path) as stream:
        lines = ((i, [line]) for i, line in enumerate(_decoded(path, stream), 1))
        for number, [line] in _without_blank_lines(path, lines):
            where = f"{shown(path)}:{number}"
            found = object_in(where, line)
            named = [parts(column, found) for column in wanted]
            _check_apart(where, wanted, named, label)
            for each in examples_in(where, found, wanted):
                *texts, answer = each if label is not None else [*each, None]
                check_lists(where, found, texts)
                values: list[str | None] = [
                    joined([_value(where, found, part) for part in parts(column, found)])
                    for column in texts
                ]
                if answer is not None:
                    optional = label_optional or answer in found
                    absent = optional and value_at(found, answer) is None
                    values.append(None if absent else _value(where, found, answer, number=True))
                yield number, values


def _is_json(line: str) -> bool:
    """Whether a line of text is an object of JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _value(where: str, found: dict[str, Any], column: str, number: bool = False) -> str:
    """A text; or if that is allowed, a number."""
    value = value_at(found, column)
    if value is None and column not in found:
        hint = "; JSON-lines have no numbers of columns: give names" if column.isdecimal() else ""
        raise UsageError(f"{where}: there is no {column}: there are {', '.join(found)}{hint}")
    if number and isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        wanted = "a text or a number" if number else "a text"
        raise UsageError(f"{where}: {column} must be {wanted}, not {json.dumps(value):.40}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{where}: {column} holds half a character ({json.dumps(value):.40})"
        ) from None
    return value


def _decoded(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The lines, each of which ends with a line feed, and not at Unicode's other line ends."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{shown(path)}:{number}: the text is not in UTF-8: {error}") from None


def _split_tsv(path: Path, lines: Iterator[str], check: bool) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line; quoted ones are a UsageError if they are to be checked for."""
    choose = "give --format quoted-tsv to take them off, or --format tsv to keep them as text"
    commas: Counter[bool] = Counter()
    for number, line in enumerate(lines, 1):
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        if check and _are_quoted(fields, first=number == 1):
            more = sum(_are_quoted(each.rstrip("\r\n").split("\t")) for each in lines)
            also = f", and {more:,} lines after it" if more else ""
            raise UsageError(
                f"{shown(path)}:{number}: fields are in quotation marks here{also}: {choose}"
            )
        commas.update(_QUOTED.fullmatch(field) is not None for field in fields if "," in field)
        yield number, fields
    if check and commas[True] > 1 and not commas[False]:  # as Excel writes them
        raise UsageError(
            f"{shown(path)}: the fields with a comma are all in quotation marks: {choose}"
        )


def _are_quoted(fields: Sequence[str], first: bool = False) -> bool:
    """Whether a program put quotation marks around fields, rather than an author.

    A program doubles the marks inside of a field. If it puts all fields of the first line in marks,
    it does so in every line.
    """
    inside = [field[1:-1] for field in fields if len(field) > 1 and field[0] == field[-1] == '"']
    doubled = any('""' in each and '"' not in each.replace('""', "") for each in inside)
    every = len(fields) == len(inside) > 1 and not any('"' in each for each in inside)
    return doubled or (every and first)


def _split_csv(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    kind = "CSV" if delimiter == "," else "quoted TSV"
    csv.field_size_limit(2**31 - 1)  # whole documents
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    begins = 1
    try:
        for fields in reader:
            yield begins, fields
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{shown(path)}:{begins}: this is not {kind}: {error}") from None


def _without_blank_lines(
    path: Path, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    """The rows, without blank lines at the end of the file; elsewhere a blank line is an error."""
    blank = None
    for line, fields in rows:
        if not any(field.strip() for field in fields):
            blank = blank or line
            continue
        if blank is not None:
            raise UsageError(f"{shown(path)}:{blank}: the line is empty")
        yield line, fields
