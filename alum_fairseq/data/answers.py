"""Questions and tagged sentences, as they are published: SQuAD's JSON, and CoNLL's columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alum_fairseq.data.columns import object_in
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import opened, shown
from alum_fairseq.problems import SequenceTagging, SpanPrediction
from alum_fairseq.problems.span_prediction import label_of

DOCUMENT = "-DOCSTART-"

# A line, or the number of a question; the texts; the label, or None; the name, if it has one.
Found = tuple[int, tuple[str, ...], str | None, str | None]


def read_squad(
    path: Path,
    columns: Sequence[str] = SpanPrediction.columns,
    label: str | None = SpanPrediction.label_column,
    optional: bool = False,
) -> Iterator[Found]:
    """Read questions: SQuAD's JSON (1.1 or 2.0), or JSON lines as Hugging Face writes them.

    An object a line has ``question``, ``context`` and ``answers`` (``text``, ``answer_start``).

    Args:
        path: the file.
        columns: those names, and no others.
        label: likewise, or None.
        optional: whether answers may be missing.

    Raises:
        UsageError: it is neither, two questions have one id, or an answer does not stand where it
            says.
    """
    file, own = shown(path), SpanPrediction
    if tuple(columns) != own.columns or label not in (None, own.label_column):
        raise UsageError(
            f"{file}: questions are read from {' and '.join(own.columns)}, and their answers from "
            f"{own.label_column}: leave out --columns and --label"
        )
    text = _text_of(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and "data" in whole:
        found = _of_articles(file, whole["data"])
    else:
        found = _of_lines(file, text)
    names = set()
    for number, (where, context, question) in enumerate(found, 1):
        if not isinstance(question, dict):
            raise UsageError(f"{where}: an object is expected, not {json.dumps(question):.40}")
        name = str(question.get("id") or number)
        if name in names:
            raise UsageError(f"{where}: two questions have the id {name}")
        names.add(name)
        asked = f"{where}, question {name}"
        texts = [_is_text(asked, question, "question")]
        texts.append(_is_text(asked, {"context": context}, "context"))
        label = None
        if not (optional and question.get("answers") is None):
            label = label_of(list(_answers(asked, texts[1], question)))
        yield number, tuple(texts), label, name


def _of_articles(file: str, articles: Any) -> Iterator[tuple[str, Any, Any]]:
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield file, paragraph["context"], question
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{file} is not SQuAD's JSON: {one_line(error)} (data, paragraphs, context and qas are "
            "expected)"
        ) from None


def _of_lines(file: str, text: str) -> Iterator[tuple[str, Any, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            found = object_in(f"{file}:{number}", line)
            yield f"{file}:{number}", found.get("context"), found


def _answers(where: str, context: str, question: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Each answer with its first character, which is looked for near the one that is given."""
    answers = question.get("answers")
    if question.get("is_impossible") is True:
        return
    try:
        if isinstance(answers, dict):
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
    except (TypeError, KeyError, ValueError):
        raise UsageError(f"{where}: its answers need text and answer_start") from None
    for text, start in pairs:
        if not isinstance(text, str) or type(start) is not int:
            raise UsageError(f"{where}: its answers need text and answer_start")
        stripped = text.strip()
        start += len(text) - len(text.lstrip())
        if not stripped or not context.startswith(stripped, max(start, 0)):
            there = context[max(start, 0) : start + len(text)]
            raise UsageError(
                f"{where}: its answer {text!r:.60} does not stand at {start}, where the context "
                f"has {there!r:.60}"
            )
        yield stripped, start


def read_tagged(
    path: Path,
    columns: Sequence[str] = SequenceTagging.columns,
    label: str | None = SequenceTagging.label_column,
    optional: bool = False,
) -> Iterator[Found]:
    """Read tagged sentences: CoNLL's columns, a word a line; or JSON lines of two lists.

    Args:
        path: the file.
        columns: one, where the words are: the number of a column, or the key of a list; ``tokens``
            stands for the first column.
        label: where the tags are, likewise; ``tags`` stands for the last column.
        optional: whether tags may be missing.

    Raises:
        UsageError: a line is malformed, or has no such column.
    """
    file = shown(path)
    if len(columns) != 1:
        raise UsageError(f"--columns {' '.join(columns)}: the words of {file} are in one column")
    text = _text_of(path)
    if text.lstrip().startswith("{"):
        yield from _of_lists(file, text, columns[0], label, optional)
        return
    word_at, tag_at = _place(file, columns[0]), _place(file, label)
    lines = [*text.split("\n"), ""]
    tabs = any("\t" in line.strip() for line in lines if not line.startswith("#"))

    def fields_of(line: str) -> list[str]:
        if not line.strip() or line.startswith(DOCUMENT):
            return []
        return line.strip("\r").split("\t") if tabs else re.split(" +", line.strip(" \t\r"))

    with_word = (number for number, line in enumerate(lines, 1) if fields_of(line))
    first = min(with_word, key=lambda number: lines[number - 1].startswith("#"), default=None)
    if first is None:
        return
    width = len(fields_of(lines[first - 1]))
    tagged = label is not None and not (optional and width < 2)
    needed = max(word_at + 1, (tag_at + 1 or 2) if tagged else 1)
    if width < needed:
        raise UsageError(
            f"{file}:{first}: there is no column {needed}, only {width}, in "
            f"{lines[first - 1].strip()!r:.60}: a line has a word and its tag, in two or more "
            "columns"
        )
    if tagged and word_at == tag_at % width:
        raise UsageError(
            f"{file}: words and tags are both column {word_at + 1}: say by --columns and --label "
            "which is which"
        )
    words: list[str] = []
    tags: list[str] = []
    begun = 0
    for number, line in enumerate(lines, 1):
        fields = fields_of(line)
        if not fields:
            if words:
                yield begun, *_sentence(words, tags), None
            words, tags = [], []
            continue
        may_be_comment = line.startswith("#" if tabs else "# ")
        if may_be_comment and (len(fields) != width or fields[2:3] == ["="]):
            continue
        if len(fields) != width:
            raise UsageError(
                f"{file}:{number}: the number of columns is {len(fields)}, but {width} in line "
                f"{first}: {line.strip()!r:.60}"
            )
        begun = begun if words else number
        words.append(fields[word_at].strip())
        tags += [fields[tag_at].strip()] * tagged
        if " " in words[-1] or not words[-1] or (tags and (" " in tags[-1] or not tags[-1])):
            raise UsageError(f"{file}:{number}: a word, or a tag, is empty or holds a blank")


def _place(file: str, column: str | None) -> int:
    """The place of a column of CoNLL's, from 0, or -1: the last."""
    usual = {SequenceTagging.columns[0]: 0, SequenceTagging.label_column: -1, None: -1}
    if column in usual:
        return usual[column]
    if not column.isdecimal() or int(column) == 0:
        raise UsageError(
            f"there is no column {column} in {file}, whose columns have no names: give a number, "
            "from 1"
        )
    return int(column) - 1


def _of_lists(
    file: str, text: str, column: str, label: str | None, optional: bool
) -> Iterator[Found]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        found = object_in(where, line)
        words = _list_of_words(where, found, column)
        tags: list[str] = []
        if column == label:
            raise UsageError(f"{file}: words and tags are both {column}: say which is which")
        if label is not None and not (optional and found.get(label) is None):
            tags = _list_of_words(where, found, label, numbers=True)
            if len(tags) != len(words):
                raise UsageError(
                    f"{where}: there are {len(words)} {column}, but {len(tags)} {label}"
                )
        if words:
            yield number, *_sentence(words, tags), None


def _sentence(words: list[str], tags: list[str]) -> tuple[tuple[str], str | None]:
    return (" ".join(words),), " ".join(tags) or None


def _list_of_words(where: str, found: dict[str, Any], key: str, numbers: bool = False) -> list[str]:
    if key not in found:
        raise UsageError(f"{where}: there is no {key}: there are {', '.join(found)}")
    words = found[key]
    if isinstance(words, list):
        words = [str(word) if numbers and type(word) is int else word for word in words]
        if all(_is_whole(word) and word and " " not in word for word in words):
            return words
    raise UsageError(f"{where}: {key} must be a list of words without blanks")


def _is_text(where: str, found: dict[str, Any], key: str) -> str:
    text = found.get(key)
    if not _is_whole(text):
        raise UsageError(f"{where}: {key} must be a text, not {json.dumps(text):.40}")
    return text


def _is_whole(text: Any) -> bool:
    """Whether it is a text, without half a surrogate pair."""
    return isinstance(text, str) and text.encode(errors="ignore").decode() == text


def _text_of(path: Path) -> str:
    try:
        with opened(path) as stream:
            return stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown(path)}: the text is not in UTF-8: {error}") from None
