"""A greedy attack on the words of a text, by queries alone.

The recipe is common to three attacks, and each gives it something:

- Gao et al. 2018, "Black-box Generation of Adversarial Text Sequences to Evade Deep Learning
  Classifiers" (DeepWordBug, arXiv 1801.04354): rank the words, then change letters in them, the
  most important word first;
- Li et al. 2019, "TextBugger: Generating Adversarial Text Against Real-world Applications" (arXiv
  1812.05271): a word is as important as the model misses it when it is left out; of all changes to
  it, the most harmful one is kept;
- Jin et al. 2020, "Is BERT Really Robust?" (TextFooler, arXiv 1907.11932): whole words as
  candidates; the first word whose candidates change the prediction ends the search.

Two things differ. Harm is measured by the loss of the right answer, which serves classification,
regression and multiple choice alike. And the last edit that the limit allows is made only after
every word was tried, so that an attack with one edit is as good as an exhaustive search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass

from alum_fairseq.errors import is_number, require, require_count
from alum_fairseq.robustness.attacks.noise import NOISES, seeded
from alum_fairseq.robustness.attacks.words import MIN_LETTERS, Edit, Editor, Place, may_stand_in
from alum_fairseq.robustness.types import Candidates, Texts, Verdict

Attack = Generator[list[Texts], list[Verdict], "Attempt"]


@dataclass(frozen=True)
class Limits:
    """What an attack may do to an example.

    Attributes:
        max_edits: the share of the words that may be replaced, above 0 and up to 1; rounded down,
            but one word always may.
        max_queries: how many texts the model may be asked about, the original among them.
        min_letters: words with fewer letters stay.

    Raises:
        UsageError: a value is out of its range.
    """

    max_edits: float = 0.2
    max_queries: int = 200
    min_letters: int = MIN_LETTERS

    def __post_init__(self) -> None:
        right = "a share of the words, above 0 and at most 1"
        share = is_number(self.max_edits) and 0 < self.max_edits <= 1
        require("max_edits", self.max_edits, right, share)
        require_count("max_queries", self.max_queries)
        require_count("min_letters", self.min_letters)

    def edits(self, words: int) -> int:
        """How many of so many words may be replaced."""
        return max(1, math.floor(self.max_edits * words + 1e-9))  # 0.29 * 100 is 28.999...


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


def character_edits(seed: int, at_most: int = 8) -> Candidates:
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


def greedy_attack(
    texts: Texts,
    candidates: Candidates,
    limits: Limits,
    editable: Collection[int] | None = None,
) -> Attack:
    """Replace words until the model errs, the most important ones first.

    A generator, so that many attacks can share a batch (see :func:`run_side_by_side`): it yields
    the texts that it asks about, and is sent a verdict for each. At most half of the queries rank
    the words by importance. If a text has more words than that, evenly spaced ones are ranked, and
    the others come last. Texts that the model is wrong about are left as they are.

    Args:
        editable: the numbers of the texts that may be edited, from 0; None: all.

    Raises:
        UsageError: there is no text of such a number.
    """
    editor = Editor(texts, editable)
    edits_left = limits.edits(editor.words)
    model = _Model(limits.max_queries)
    verdict = (yield from model.ask([texts]))[texts]
    base = best = _State(texts, verdict, {})  # what is edited next; the most harmful so far
    if verdict.correct:
        for place in (yield from _by_importance(editor, limits.min_letters, model)):
            tried = yield from _try_candidates(editor, base, place, candidates, model)
            best = max([best, *tried], key=_harm)
            if not best.verdict.correct or not model.queries_left:
                break
            if best is not base and edits_left > 1:
                base, edits_left = best, edits_left - 1
    edits = tuple(
        Edit(*place, editor.word(place), after) for place, after in sorted(best.words.items())
    )
    return Attempt(best.texts, best.verdict, edits, len(model.known))


def _by_importance(
    editor: Editor, min_letters: int, model: _Model
) -> Generator[list[Texts], list[Verdict], list[Place]]:
    """The places of the words, first that whose absence costs the model most."""
    places = editor.places(min_letters)
    count = min(len(places), model.queries_left // 2)
    looked_at = [places[i * len(places) // count] for i in range(count)]
    without = {place: editor.without(place) for place in looked_at}
    verdicts = yield from model.ask(without.values())
    losses = {place: verdicts[texts].loss for place, texts in without.items()}
    return sorted(places, key=lambda place: -losses.get(place, -math.inf))


def _try_candidates(
    editor: Editor, base: _State, place: Place, candidates: Candidates, model: _Model
) -> Generator[list[Texts], list[Verdict], list[_State]]:
    """What becomes of the texts with each of a word's candidates, as far as queries are left."""
    word = editor.word(place)
    words = [{**base.words, place: c} for c in candidates(word) if may_stand_in(c, word)]
    edited = {editor.replaced(changed): changed for changed in words}
    verdicts = yield from model.ask(edited)
    return [_State(texts, verdict, edited[texts]) for texts, verdict in verdicts.items()]


def _harm(state: _State) -> tuple[bool, float]:
    return not state.verdict.correct, state.verdict.loss


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
