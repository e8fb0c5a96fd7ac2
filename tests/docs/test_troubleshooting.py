"""Every message that a program can end with is on the page of troubleshooting."""

from __future__ import annotations

import ast
import re

import pytest
from support.places import ROOT
from test_generated import docs

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^- `(.*)`$", PAGE.partition(docs.MADE)[2], flags=re.MULTILINE)


def matches(pattern: str, message: str) -> bool:
    """Whether a message is of a pattern of the page."""
    parts = re.split(r"<[^<>]*>", pattern)
    return re.fullmatch(".*".join(map(re.escape, parts)), message, flags=re.DOTALL) is not None


def raised() -> list[ast.Call]:
    """All calls that make a UsageError."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "alum_fairseq").rglob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if getattr(call.func, "id", "") == "UsageError"]


def words_of(call: ast.Call) -> str:
    """The longest text that stands in a message of the code."""
    texts = [n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant)]
    return max((text for text in texts if isinstance(text, str)), key=len, default="")


def test_every_message_of_the_code_is_listed() -> None:
    calls = raised()
    assert len(calls) > 250
    all_of_them = "\n".join(LISTED)
    missing = [
        words for words in map(words_of, calls) if " ".join(words.split()) not in all_of_them
    ]
    assert [words for words in missing if len(words) > 12] == []


def test_the_frequent_ones_are_among_them() -> None:
    first = PAGE.partition("## What fairseq")[0]
    rows = re.findall(r"^\| `(.*?)` \|", first, flags=re.MULTILINE)
    assert len(rows) >= 15
    for row in rows:
        assert any(row in message for message in LISTED), row


@pytest.mark.parametrize(
    "message",
    [
        "base.pt does not fit the model: it has 6 layers, not 12: give --encoder-layers 6",
        "--alum-steps is -1: it must be a whole number, 0 or more",
        "data exists: remove it, or name another folder",
        "model.pt has no classification head: it was not fine-tuned",
    ],
)
def test_a_message_is_found(message: str) -> None:
    assert any(matches(pattern, message) for pattern in LISTED)


def test_nothing_else_is_found() -> None:
    assert not any(matches(pattern, "something else went wrong") for pattern in LISTED)
