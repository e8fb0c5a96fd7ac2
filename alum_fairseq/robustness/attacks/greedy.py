"""A greedy attack on the words of a text, by queries alone.

The recipe is common to the attacks of the literature, and each gives it something:

- Gao et al. 2018, "Black-box Generation of Adversarial Text Sequences to Evade Deep Learning
  Classifiers" (DeepWordBug, arXiv 1801.04354): rank the words, then change letters in them, the
  most important word first;
- Li et al. 2019, "TextBugger: Generating Adversarial Text Against Real-world Applications" (arXiv
  1812.05271): a word is as important as the model misses it when it is left out; of all changes to
  it, the most harmful one is kept;
- Jin et al. 2020, "Is BERT Really Robust?" (TextFooler, arXiv 1907.11932): whole words as
  candidates; the first word whose candidates change the prediction ends the search;
- Ren et al. 2019, "Generating Natural Language Adversarial Examples through Probability Weighted
  Word Saliency" (PWWS, https://aclanthology.org/P19-1103/): a word is as important as the model
  misses it, times what its best candidate gains.

Two things differ. Harm is measured by the loss of the right answer, which serves classification,
regression and multiple choice alike. And the last edit that the limit allows is made only after
every word was tried, so that an attack with one edit is as good as an exhaustive search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import itemgetter

from alum_fairseq.errors import is_number, require, require_count
from alum_fairseq.robustness.attacks.noise import NOISES, seeded
from alum_fairseq.robustness.attacks.words import (
    MIN_LETTERS,
    Candidates,
    Edit,
    Editor,
    Place,
    may_stand_in,
)
from alum_fairseq.robustness.types import Texts, Verdict

Attack = Generator[list[Texts], list[Verdict], "Attempt"]

# How important a word is: the loss when it is left out; when another word stands there; or how much
# that raises the loss, by softmax over the words, times what the probability loses by the word's
# best candidate (PWWS).
LEFT_OUT, MASKED, WEIGHTED = "left out", "masked", "weighted"
_NO_WORD = "[UNK]"  # a model's own symbol cannot be written in a text


@dataclass(frozen=True)
class Limits:
    """What an attack may do to an example.

    Attributes:
        max_edits: the share of the words that may be replaced, above 0 and up to 1; rounded down,
            but one word always may.
        max_queries: how many texts the model may be asked about, the original among them; None:
            ``max_candidates`` times the number of words.
        min_letters: words with fewer letters stay.
        max_candidates: how many of the candidates for a word are tried.

    Raises:
        UsageError: a value is out of its range.
    """

    max_edits: float = 0.2
    max_queries: int | None = 200
    min_letters: int = MIN_LETTERS
    max_candidates: int = 8

    def __post_init__(self) -> None:
        right = "a share of the words, above 0 and at most 1"
        share = is_number(self.max_edits) and 0 < self.max_edits <= 1
        require("max_edits", self.max_edits, right, share)
        if self.max_queries is not None:
            require_count("max_queries", self.max_queries)
        require_count("min_letters", self.min_letters)
        require_count("max_candidates", self.max_candidates)

    def edits(self, words: int) -> int:
        """How many of so many words may be replaced."""
        return max(1, math.floor(self.max_edits * words + 1e-9))  # 0.29 * 100 is 28.999...

    def queries(self, words: int) -> int:
        """How many texts the model may be asked about, of an example with so many words."""
        return self.max_queries or self.max_candidates * max(1, words)


@dataclass(frozen=True)
class Attempt:
    """How an attack ended.

    Attributes:
        texts: those that broke the model, or else those with the highest loss that it found.
        verdict: what the model says of them.
        edits: the words that differ.
        queries: how many different texts the model was asked about.
    """

    texts: Texts
    verdict: Verdict
    edits: tuple[Edit, ...]
    queries: int


def character_edits(seed: int, at_most: int = 8) -> Callable[[str], list[str]]:
    """Typing mistakes as candidates, drawn from all that ``NOISES`` makes.

    Args:
        at_most: how many to give for a word.

    Returns:
        A function from a word to distinct misspellings of it, the same ones each time.

    Raises:
        UsageError: ``at_most`` is below 1.
    """
    require_count("at_most", at_most)

    def misspellings(word: str) -> list[str]:
        found = list(dict.fromkeys(typo for typos in NOISES.values() for typo in typos(word)))
        if len(found) <= at_most:
            return found
        return seeded(seed, "candidates", word).sample(found, at_most)

    return misspellings


class _Model:
    """Asks for verdicts, about no text twice, and about no more texts than the limit says."""

    def __init__(self, max_queries: int) -> None:
        self._limit = max_queries
        self.known: dict[Texts, Verdict] = {}

    @property
    def queries_left(self) -> int:
        return self._limit - len(self.known)

    def ask(
        self, wanted: Iterable[Texts]
    ) -> Generator[list[Texts], list[Verdict], dict[Texts, Verdict]]:
        """The verdicts of the wanted texts; those beyond the limit are left out."""
        wanted = list(dict.fromkeys(wanted))
        new = [texts for texts in wanted if texts not in self.known][: self.queries_left]
        if new:
            self.known.update(zip(new, (yield new), strict=True))
        return {texts: self.known[texts] for texts in wanted if texts in self.known}


@dataclass(frozen=True)
class _State:
    texts: Texts
    verdict: Verdict
    words: dict[Place, str]


def _harm(state: _State) -> tuple[bool, float]:
    return not state.verdict.correct, state.verdict.loss


# Which of some texts may be tried.
Admits = Callable[[list[Texts]], list[bool]]
_Tried = Generator[list[Texts], list[Verdict], list[_State]]


def greedy_attack(
    texts: Texts,
    candidates: Candidates,
    limits: Limits,
    editable: Collection[int] | None = None,
    importance: str = LEFT_OUT,
    admits: Admits | None = None,
    fixed: Collection[tuple[int, int, int]] = (),
) -> Attack:
    """Replace words until the model errs, the most important ones first.

    A generator, so that many attacks can share a batch (see :func:`run_side_by_side`): it yields
    the texts that it asks about, and is sent a verdict for each. At most half of the queries rank
    the words by importance. If a text has more words than that, evenly spaced ones are ranked, and
    the others come last. Texts that the model is wrong about are left as they are.

    Args:
        editable: the numbers of the texts that may be edited, from 0; None: all.
        importance: of a word: :data:`LEFT_OUT`, :data:`MASKED` or :data:`WEIGHTED`.
        admits: which texts may be tried; those that may not cost no query. None: all.
        fixed: where no character may change, as for an :class:`Editor`.

    Raises:
        UsageError: there is no text of such a number.
    """
    editor = Editor(texts, editable, fixed)
    edits_left = limits.edits(editor.words)
    model = _Model(limits.queries(editor.words))
    verdict = (yield from model.ask([texts]))[texts]
    base = best = _State(texts, verdict, {})  # what is edited next; the most harmful so far
    if verdict.correct:
        attempt = _Attempts(editor, model, admits, _usable(editor, candidates, limits))
        order, tried = yield from attempt.ranked(base, importance)
        if any(not state.verdict.correct for state in tried):
            order = []
        for place in order:
            best = max([best, *(yield from attempt.with_words(base, [place]))], key=_harm)
            if not best.verdict.correct or not model.queries_left:
                break
            if best is not base and edits_left > 1:
                base, edits_left = best, edits_left - 1
        best = max([best, *tried], key=_harm)
    edits = tuple(
        Edit(*place, editor.word(place), after) for place, after in sorted(best.words.items())
    )
    return Attempt(best.texts, best.verdict, edits, len(model.known))


def _usable(editor: Editor, candidates: Candidates, limits: Limits) -> dict[Place, list[str]]:
    """The candidates of each word that has any, as many as the limit says."""
    found = candidates(editor, editor.places(limits.min_letters))
    usable = {
        place: [word for word in words if may_stand_in(word, editor.word(place))]
        for place, words in found.items()
    }
    return {place: words[: limits.max_candidates] for place, words in usable.items() if words}


@dataclass(frozen=True)
class _Attempts:
    """Asks what becomes of texts with other words in them."""

    editor: Editor
    model: _Model
    admits: Admits | None
    candidates: Mapping[Place, list[str]]

    def with_words(self, base: _State, places: Iterable[Place], most: int | None = None) -> _Tried:
        """With each candidate of each of these words, as far as queries are left."""
        # The best candidates of all words, then the second best, ...
        ranks = [
            (rank, {**base.words, place: word})
            for place in places
            for rank, word in enumerate(self.candidates[place])
        ]
        words = [changed for _, changed in sorted(ranks, key=itemgetter(0))]
        edited = {self.editor.replaced(changed): changed for changed in words}
        texts = list(edited)
        if self.admits is not None:
            texts = list(compress(texts, self.admits(texts)))
        verdicts = yield from self.model.ask(texts[:most])
        return [_State(text, verdict, edited[text]) for text, verdict in verdicts.items()]

    def ranked(
        self, start: _State, importance: str
    ) -> Generator[list[Texts], list[Verdict], tuple[list[Place], list[_State]]]:
        """The places of the words, the most important first, and what was tried to rank them."""
        places, editor = list(self.candidates), self.editor
        kept = (self.model.queries_left + 1) // 2  # queries for what comes after
        count = min(len(places), self.model.queries_left - kept)
        looked_at = [places[i * len(places) // count] for i in range(count)]
        without = {
            place: editor.without(place)
            if importance == LEFT_OUT
            else editor.replaced({place: _NO_WORD})
            for place in looked_at
        }
        verdicts = yield from self.model.ask(without.values())
        value = {place: verdicts[texts].loss for place, texts in without.items()}
        tried = []
        if importance == WEIGHTED and value:
            tried = yield from self.with_words(
                start, looked_at, max(0, self.model.queries_left - kept)
            )
            value = _weighted(start, value, tried)
        return sorted(places, key=lambda place: -value.get(place, -math.inf)), tried


def _weighted(
    start: _State, losses: Mapping[Place, float], tried: Sequence[_State]
) -> dict[Place, float]:
    """Ren et al. (2019), equations 6 to 8: softmax of the saliency, times the best gain."""
    gain = dict.fromkeys(losses, -math.inf)
    for state in tried:
        (place,) = state.words
        gain[place] = max(gain[place], _doubt(state.verdict.loss) - _doubt(start.verdict.loss))
    saliency = {place: math.exp(_doubt(loss)) for place, loss in losses.items()}  # unnormalised
    return {place: weight * gain[place] for place, weight in saliency.items()}


def _doubt(loss: float) -> float:
    """One less the probability of the right answer, exact where that is nearly one."""
    return -math.expm1(-loss)


def run_side_by_side(
    attacks: Iterable[Attack],
    ask: Callable[[list[tuple[int, Texts]]], list[Verdict]],
    at_most: int,
) -> list[Attempt]:
    """Run attacks in lockstep, so that their questions make big batches.

    Args:
        attacks: what :func:`greedy_attack` gives.
        ask: gives the verdicts of texts; the numbers are those of their attacks, from 0.
        at_most: how many attacks are under way at a time.

    Raises:
        UsageError: ``at_most`` is below 1.
    """
    require_count("at_most", at_most)
    ended: dict[int, Attempt] = {}
    under_way: dict[int, tuple[Attack, list[Texts]]] = {}

    def proceed(number: int, attack: Attack, verdicts: list[Verdict] | None) -> None:
        try:
            under_way[number] = attack, attack.send(verdicts)
        except StopIteration as end:
            under_way.pop(number, None)
            ended[number] = end.value

    waiting = enumerate(attacks)
    while True:
        while len(under_way) < at_most and (following := next(waiting, None)):
            proceed(*following, None)
        if not under_way:
            return [ended[number] for number in sorted(ended)]
        asked = [(number, texts) for number, (_, wanted) in under_way.items() for texts in wanted]
        verdicts = dict(zip(asked, ask(asked), strict=True))
        for number, (attack, wanted) in list(under_way.items()):
            proceed(number, attack, [verdicts[number, texts] for texts in wanted])
