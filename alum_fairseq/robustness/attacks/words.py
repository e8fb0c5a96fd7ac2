"""The words of texts: which of them may be edited, and the texts put together again.

A word is what stands between blanks, less the characters at its ends that are neither letters nor
digits. In languages that are written without blanks, whole phrases are words in this sense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from alum_fairseq.errors import UsageError
from alum_fairseq.robustness.types import Texts

MIN_LETTERS = 4  # a shorter word has no two inner letters

# What the special tokens of all models look like: <s>, </s>, <|endoftext|>, [CLS], ...
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_BRACKETS = frozenset("<>[]")

Place = tuple[int, int]  # of a word: the number of its text, and its own there, both from 0


@dataclass(frozen=True)
class Edit:
    """A word that was replaced.

    Attributes:
        text: the number of its text, from 0.
        word: the number of the word in the original text, from 0.
        before: the word; empty where one was inserted before it.
        after: what stands in its place; empty where it was taken out.
    """

    text: int
    word: int
    before: str
    after: str


@dataclass(frozen=True)
class SplitText:
    """A text as ``gaps[0] + words[0] + gaps[1] + ... + words[-1] + gaps[-1]``.

    Gaps are blanks and punctuation. Make one with :meth:`of`.
    """

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> SplitText:
        """Split a text; :meth:`join` gives it back to the last character."""
        words, gaps, end = [], [], 0
        for token in re.finditer(r"\S+", text):
            core = [i for i, char in enumerate(token.group(), token.start()) if char.isalnum()]
            if core:
                gaps.append(text[end : core[0]])
                end = core[-1] + 1
                words.append(text[core[0] : end])
        return cls(tuple(words), (*gaps, text[end:]))

    def join(self, replaced: Mapping[int, str] | None = None) -> str:
        """The text, with other words in place of those that have these numbers."""
        words = [(replaced or {}).get(number, word) for number, word in enumerate(self.words)]
        return "".join(gap + word for gap, word in zip(self.gaps, [*words, ""], strict=True))

    def without(self, number: int) -> str:
        """The text without a word; of the blanks on both sides of it, one goes, too."""
        before = SplitText(self.words[:number], self.gaps[: number + 1]).join()
        after = SplitText(self.words[number + 1 :], self.gaps[number + 1 :]).join()
        if (not before or before[-1].isspace()) and (not after or after[0].isspace()):
            return before + after[1:] if after else before[:-1]
        return before + after

    def editable(
        self, min_letters: int = MIN_LETTERS, fixed: Collection[tuple[int, int]] = ()
    ) -> list[int]:
        """The numbers of the words that are letters alone, enough of them, and no special token.

        Args:
            min_letters: how many are enough.
            fixed: where no character may change: the first, and the one after the last.
        """
        left_alone = [match.span() for match in _SPECIAL.finditer(self.join())] + [*fixed]
        found, end = [], 0
        for number, word in enumerate(self.words):
            begin = end + len(self.gaps[number])
            end = begin + len(word)
            is_fixed = any(first < end and begin < last for first, last in left_alone)
            if word.isalpha() and len(word) >= min_letters and not is_fixed:
                found.append(number)
        return found


class Editor:
    """The texts of an example, some of which may be edited.

    Args:
        editable: the numbers of those that may be edited, from 0; None: all.
        fixed: where no character may change: the text, the first, and the one after the last.

    Raises:
        UsageError: there is no text of such a number.
    """

    def __init__(
        self,
        texts: Texts,
        editable: Collection[int] | None = None,
        fixed: Collection[tuple[int, int, int]] = (),
    ) -> None:
        wrong = [number for number in editable or () if number not in range(len(texts))]
        if wrong:
            raise UsageError(
                f"text {wrong[0]} is to be edited: an example has {len(texts)}, counted from 0"
            )
        self._splits = [SplitText.of(text) for text in texts]
        self._fixed = [[span for i, *span in fixed if i == text] for text in range(len(texts))]
        self._chosen = [i for i in range(len(texts)) if editable is None or i in editable]

    @property
    def words(self) -> int:
        """How many words the texts have that may be edited."""
        return sum(len(self._splits[text].words) for text in self._chosen)

    def places(self, min_letters: int = MIN_LETTERS) -> list[Place]:
        """The words that may be edited, in reading order; see :meth:`SplitText.editable`."""
        return [
            (text, word)
            for text in self._chosen
            for word in self._splits[text].editable(min_letters, self._fixed[text])
        ]

    def word(self, place: Place) -> str:
        """The word at a place."""
        text, word = place
        return self._splits[text].words[word]

    def around(self, place: Place) -> tuple[str, str]:
        """What stands before and after the word at a place, in its text."""
        text, word = place
        split = self._splits[text]
        before = SplitText(split.words[:word], split.gaps[: word + 1]).join()
        return before, split.join()[len(before) + len(split.words[word]) :]

    def neighbours(self, place: Place, reach: int) -> tuple[list[str], list[str]]:
        """The words before and after the one at a place, so many on either side."""
        text, word = place
        words = list(self._splits[text].words)
        return words[max(0, word - reach) : word], words[word + 1 : word + 1 + reach]

    def replaced(self, words: Mapping[Place, str]) -> Texts:
        """The texts with other words at these places."""
        return tuple(
            split.join({word: new for (in_text, word), new in words.items() if in_text == text})
            for text, split in enumerate(self._splits)
        )

    def without(self, place: Place) -> Texts:
        """The texts without the word at a place."""
        text, word = place
        return tuple(
            split.without(word) if i == text else split.join()
            for i, split in enumerate(self._splits)
        )


# What may stand in the place of words, the best first, for some of the places of an example.
Candidates = Callable[[Editor, Sequence[Place]], Mapping[Place, list[str]]]


def of_words(function: Callable[[str], list[str]]) -> Candidates:
    """Candidates that depend on the word alone."""
    return lambda editor, places: {place: function(editor.word(place)) for place in places}


# Words that hold a sentence together, and those that turn its meaning round. Attacks that replace
# whole words leave them, as those of the papers do, by lists of their own.
_STOP_WORDS = """
a about above after again against ain all almost alone along already also although am among
an and another any are aren as at be because been before being below between both but by can
cannot could couldn d did didn do does doesn doing don down during each either else ever every
few for from further had hadn has hasn have haven having he hence her here hers herself him
himself his how however i if in into is isn it its itself just ll m may me might mightn more
most much must mustn my myself n neither never no none nor not nothing now nt o of off often on
once one only or other our ours ourselves out over own per rather re s same shall shan she
should shouldn since so some such t than that the their theirs them themselves then there these
they this those though through to too toward under until up upon us ve very was wasn we were
weren what when where whether which while who whom whose why will with within without won would
wouldn y yet you your yours yourself yourselves"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def content_words(candidates: Candidates) -> Candidates:
    """The same without stop words, be they replaced or put in."""

    def of_content(editor: Editor, places: Sequence[Place]) -> Mapping[Place, list[str]]:
        kept = [place for place in places if editor.word(place).lower() not in STOP_WORDS]
        return {
            place: [word for word in found if word.lower() not in STOP_WORDS]
            for place, found in candidates(editor, kept).items()
        }

    return of_content


def single_words(candidates: Candidates) -> Candidates:
    """The same without what would make two words of one."""

    def of_one_word(editor: Editor, places: Sequence[Place]) -> Mapping[Place, list[str]]:
        found = candidates(editor, places)
        return {
            place: [word for word in words if not any(map(str.isspace, word))]
            for place, words in found.items()
        }

    return of_one_word


def written_like(word: str, other: str) -> str:
    """Another word, with capitals where this one has them."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other


def may_stand_in(candidate: str, word: str) -> bool:
    """Whether a candidate changes the word, and cannot make a special token of it."""
    return bool(candidate) and candidate != word and _BRACKETS.isdisjoint(candidate)


def edits_between(before: Texts, after: Texts) -> tuple[Edit, ...]:
    """The words in which texts differ from what they were made of, by a shortest alignment."""
    edits = []
    for text, (old, new) in enumerate(zip(before, after, strict=True)):
        words, others = SplitText.of(old).words, SplitText.of(new).words
        matcher = SequenceMatcher(None, words, others, autojunk=False)
        for kind, start, end, other_start, other_end in matcher.get_opcodes():
            if kind != "equal":
                pairs = zip_longest(words[start:end], others[other_start:other_end], fillvalue="")
                edits += [Edit(text, min(start + i, end), a, b) for i, (a, b) in enumerate(pairs)]
    return tuple(edits)
