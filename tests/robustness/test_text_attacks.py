"""Attacks on text: what they change, what they leave, and that they find what there is to find."""

from __future__ import annotations

import itertools
import math
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alum_fairseq import UsageError
from alum_fairseq.problems import Classification
from alum_fairseq.robustness import command
from alum_fairseq.robustness.attacks import textattack_recipes
from alum_fairseq.robustness.attacks.greedy import (
    Attempt,
    Limits,
    character_edits,
    greedy_attack,
    run_side_by_side,
)
from alum_fairseq.robustness.attacks.noise import NOISES, add_noise
from alum_fairseq.robustness.attacks.textattack_recipes import run_recipe
from alum_fairseq.robustness.attacks.wordnet import wordnet_synonyms
from alum_fairseq.robustness.attacks.words import (
    Edit,
    Editor,
    SplitText,
    edits_between,
    may_stand_in,
    of_words,
)
from alum_fairseq.robustness.parts.options import resolve
from alum_fairseq.robustness.parts.textattack import TextAttack
from alum_fairseq.robustness.types import Example, Texts, Verdict

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>", "[CLS]", "[SEP]", "[MASK]"]

# Words, words with something around them, special tokens, and any characters at all.
PIECES = st.one_of(
    st.text(string.ascii_letters, min_size=1, max_size=9),
    st.sampled_from([*SPECIAL, "<great,mask>", "(film)", "don't", "Ünïcödé", "x<mask>y", "<", ">"]),
    st.text(max_size=5),
)
TEXT = st.lists(st.tuples(PIECES, st.sampled_from([" ", "  ", "\t", ", ", ""]))).map(
    lambda pieces: "".join(itertools.chain.from_iterable(pieces))
)
WORD = st.text(string.ascii_letters + "äßλж", min_size=4, max_size=12)


def special_tokens(text: str) -> list[str]:
    found = [(text.find(token, i), token) for token in SPECIAL for i in range(len(text))]
    return sorted({place: token for place, token in found if place >= 0}.items())


# Words


@given(TEXT)
def test_a_split_text_joins_to_itself(text: str) -> None:
    split = SplitText.of(text)
    assert split.join() == text
    assert len(split.gaps) == len(split.words) + 1
    for word in split.words:
        assert word[0].isalnum()
        assert word[-1].isalnum()
        assert not any(char.isspace() for char in word)
    assert not any(char.isalnum() for gap in split.gaps for char in gap)


def test_words_lose_the_punctuation_around_them() -> None:
    split = SplitText.of("  It's (almost) a «classic», <s>really</s> 1984's état-of-the-art!")
    words = ["It's", "almost", "a", "classic", "s>really</s", "1984's", "état-of-the-art"]
    assert list(split.words) == words
    assert split.gaps[:3] == ("  ", " (", ") ")
    assert split.gaps[-1] == "!"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A gripping film, truly.", ["gripping", "film", "truly"]),
        ("état naïve Größe жизнь", ["état", "naïve", "Größe", "жизнь"]),
        ("don't COVID19 co-op 2020 x_ray_", []),
        ("cafe\u0301s", []),  # an accent of its own would wander to another letter
        ("<mask> [MASK] <|endoftext|> </mask> a<mask>b [unused] <great>, ([SEPA])", []),
        ("< mask > great> <great", ["mask", "great", "great"]),
        ("", []),
    ],
)
def test_letters_alone_may_be_edited_and_no_special_token(text: str, words: list[str]) -> None:
    split = SplitText.of(text)
    assert [split.words[number] for number in split.editable()] == words


def test_short_words_stay() -> None:
    split = SplitText.of("an odd film again")
    assert [[split.words[i] for i in split.editable(n)] for n in (3, 4, 5)] == [
        ["odd", "film", "again"],
        ["film", "again"],
        ["again"],
    ]


@given(TEXT)
def test_leaving_a_word_out_leaves_the_others_and_all_special_tokens(text: str) -> None:
    split = SplitText.of(text)
    before = [token for _, token in special_tokens(text)]
    for number in split.editable(1):
        left = split.without(number)
        words = (*split.words[:number], *split.words[number + 1 :])
        assert "".join(SplitText.of(left).words) == "".join(words)
        assert [token for _, token in special_tokens(left)] == before


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("great film", "film"),
        ("A great film", "A film"),
        ("A great, film", "A , film"),
        ("A (great) film", "A () film"),
        ("It is great", "It is"),
        ("great", ""),
        ("<s great> film", "<s > film"),
    ],
)
def test_leaving_a_word_out_leaves_no_blank_too_many(text: str, left: str) -> None:
    split = SplitText.of(text)
    assert split.without(split.words.index("great") if "great" in split.words else 1) == left


def test_an_editor_edits_the_chosen_texts_alone() -> None:
    editor = Editor(("One good film.", "Two  bad films!"), editable=[1])
    assert editor.words == 3
    assert editor.places() == [(1, 2)]
    assert editor.places(min_letters=3) == [(1, 0), (1, 1), (1, 2)]
    assert editor.replaced({(1, 2): "plays"}) == ("One good film.", "Two  bad plays!")
    assert editor.without((1, 1)) == ("One good film.", "Two  films!")
    with pytest.raises(UsageError, match="text 2 is to be edited: an example has 2"):
        Editor(("a", "b"), editable=[0, 2])


def test_edits_between_texts() -> None:
    before = ("A good film , truly .", "same")
    after = ("A great film , truly great .", "same")
    assert edits_between(before, after) == (Edit(0, 1, "good", "great"), Edit(0, 4, "", "great"))
    assert edits_between(("a b c",), ("a c",)) == (Edit(0, 1, "b", ""),)
    assert edits_between(before, before) == ()


# Noise


@pytest.mark.parametrize(
    ("kind", "word", "variants"),
    [
        ("swap", "film", {"flim"}),
        ("swap", "allow", {"alolw"}),
        ("swap", "eerie", {"ereie", "eeire"}),
        ("swap", "feel", set()),
        ("drop", "film", {"flm", "fim"}),
        ("drop", "feel", {"fel"}),
        ("keyboard", "cAsb", {"c" + a + "sb" for a in "QWSZ"} | {"cA" + b + "b" for b in "adwezx"}),
        ("keyboard", "läßt", set()),
    ],
)
def test_each_kind_of_mistake(kind: str, word: str, variants: set[str]) -> None:
    found = NOISES[kind](word)
    assert set(found) == variants
    assert len(found) == len(variants)


@given(WORD)
def test_mistakes_keep_the_ends_and_change_the_word(word: str) -> None:
    for kind, mistakes in NOISES.items():
        for found in mistakes(word):
            assert found != word
            assert (found[0], found[-1]) == (word[0], word[-1])
            assert len(found) == len(word) - (kind == "drop")
            if kind == "swap":
                assert sorted(found) == sorted(word)


@given(
    st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    st.sampled_from(sorted(NOISES)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    st.integers(0, 3),
)
def test_noise_is_nested_and_within_its_rate(
    texts: Texts, kind: str, rates: list[float], seed: int
) -> None:
    (less, *_), (more, *_) = results = [add_noise(texts, kind, rate, seed) for rate in rates]
    split = [SplitText.of(text) for text in texts]
    # Mistakes are in letters alone, so that the words and gaps can be laid side by side.
    noised = [SplitText.of(text) for text in more]
    assert [each.gaps for each in noised] == [each.gaps for each in split]
    words = [word for each in split for word in each.words]
    words_less = [word for text in less for word in SplitText.of(text).words]
    words_more = [word for each in noised for word in each.words]
    able = sum(
        bool(NOISES[kind](each.words[number])) for each in split for number in each.editable()
    )
    for rate, (_, edits), changed in zip(rates, results, (words_less, words_more), strict=True):
        differ = sum(a != b for a, b in zip(words, changed, strict=True))
        assert edits == differ == min(able, round(rate * len(words)))
    for word, little, much in zip(words, words_less, words_more, strict=True):
        assert little in (word, much)
    for text, after in zip(texts, more, strict=True):
        assert special_tokens_only(after) == special_tokens_only(text)


def special_tokens_only(text: str) -> list[str]:
    return [token for _, token in special_tokens(text)]


def test_noise_depends_on_seed_and_kind_and_nothing_else() -> None:
    texts = ("the quick brown foxes jumped over those extremely lazy sleeping dogs",)
    assert add_noise(texts, "swap", 0.5, 1) == add_noise(texts, "swap", 0.5, 1)
    results = {add_noise(texts, kind, 0.5, seed)[0] for kind in NOISES for seed in range(3)}
    assert len(results) == 9
    changed = {
        frozenset(edit.word for edit in edits_between(texts, add_noise(texts, kind, 0.2, 1)[0]))
        for kind in NOISES
    }
    assert len(changed) > 1  # other words, too
    # The same in another process, where Python's own hash of a text is another.
    code = (
        "from alum_fairseq.robustness.attacks.noise import add_noise;"
        f"print(add_noise({texts!r}, 'drop', 0.5, 7)[0][0])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == add_noise(texts, "drop", 0.5, 7)[0][0]


def test_noise_in_some_of_the_texts() -> None:
    texts = ("a first little sentence stays", "every single word changes here")
    noised, edits = add_noise(texts, "drop", 1.0, 1, editable=[1])
    assert noised[0] == texts[0]
    assert edits == 5
    assert [len(word) for word in noised[1].split()] == [4, 5, 3, 6, 3]


def test_words_that_a_mistake_would_not_change_are_passed_over() -> None:
    swapped = (("feel lßät feel feel",), 1)
    assert add_noise(("feel läßt feel feel",), "swap", 0.25, 1) == swapped
    noised, edits = add_noise(("läßt läßt feel läßt",), "keyboard", 1.0, 1)
    assert edits == 1
    assert noised[0].startswith("läßt läßt f")


def test_noise_says_what_is_wrong() -> None:
    with pytest.raises(UsageError, match="noise 'typo' is not known: it must be one of swap, drop"):
        add_noise(("a",), "typo", 0.1, 1)
    for rate in (-0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match=r"rate is .*: it must be a number from 0 to 1"):
            add_noise(("a",), "swap", rate, 1)


# The greedy attack


class BagOfWords:
    """A classifier by the sum of the weights of words; what it does not know weighs nothing.

    It keeps what it is asked.
    """

    def __init__(self, weights: dict[str, float], bias: float = 0.0) -> None:
        self.weights = weights
        self.bias = bias
        self.asked: list[Texts] = []

    def verdict(self, texts: Texts) -> Verdict:
        words = [word for text in texts for word in SplitText.of(text).words]
        score = self.bias + sum(self.weights.get(word, 0.0) for word in words)
        probability = 1 / (1 + math.exp(-score))
        correct = score > 0
        return Verdict(
            "yes" if correct else "no",
            correct,
            math.log1p(math.exp(-score)),
            max(probability, 1 - probability),
        )

    def ask(self, questions: list[tuple[int, Texts]]) -> list[Verdict]:
        self.asked += [texts for _, texts in questions]
        return [self.verdict(texts) for _, texts in questions]


Words = Callable[[str], list[str]]


def attack(model: BagOfWords, text: str, words: Words, limits: Limits, **more: Any) -> Attempt:
    attacks = [greedy_attack((text,), of_words(words), limits, **more)]
    [attempt] = run_side_by_side(attacks, model.ask, 1)
    return attempt


WORDS = ["great", "lovely", "awful", "boring", "quite", "movie", "plot", "actor"]
WEIGHTS = st.fixed_dictionaries({word: st.floats(-3, 3, width=16) for word in WORDS})
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
# For each word, others that may take its place; unknown ones among them.
TABLE = st.fixed_dictionaries(
    {word: st.lists(st.sampled_from([*WORDS, "unknown", "other"]), max_size=3) for word in WORDS}
)


def single_edits(text: str, candidates: Words) -> list[Texts]:
    editor = Editor((text,))
    return [
        editor.replaced({place: new})
        for place in editor.places()
        for new in candidates(editor.word(place))
    ]


@given(SENTENCE, WEIGHTS, TABLE, st.floats(-2, 2, width=16))
def test_one_edit_finds_what_trying_everything_finds(
    text: str, weights: dict[str, float], table: dict[str, list[str]], bias: float
) -> None:
    """With queries enough, an attack with one edit breaks the model if any single edit does."""
    model = BagOfWords(weights, bias)
    attempt = attack(model, text, table.__getitem__, Limits(max_edits=0.01, max_queries=500))
    everything = [model.verdict(texts) for texts in single_edits(text, table.__getitem__)]
    clean = model.verdict((text,))
    assert attempt.verdict.correct == (clean.correct and all(v.correct for v in everything))
    assert len(attempt.edits) <= 1
    if attempt.verdict.correct:  # and else it is the most harmful one
        assert attempt.verdict.loss == max(v.loss for v in [clean, *everything])


@given(SENTENCE, WEIGHTS, st.floats(-2, 2, width=16), st.integers(1, 4))
def test_edits_that_hide_words_are_chosen_in_the_best_way(
    text: str, weights: dict[str, float], bias: float, allowed: int
) -> None:
    """Where an edit hides a word from the model, importance is what the edit gains.

    The greedy choice is then the best one for any number of edits: it breaks the model if any
    choice of as many words does, and with as few words as can be.
    """
    model = BagOfWords(weights, bias)
    count = len(text.split())
    limits = Limits(max_edits=min(1.0, (allowed + 0.5) / count), max_queries=500)
    attempt = attack(model, text, lambda word: ["unknown"], limits)
    editor = Editor((text,))
    breaking = [
        len(hidden)
        for size in range(limits.edits(count) + 1)
        for hidden in itertools.combinations(editor.places(), size)
        if not model.verdict(editor.replaced(dict.fromkeys(hidden, "unknown"))).correct
    ]
    assert attempt.verdict.correct == (not breaking)
    if breaking:
        assert len(attempt.edits) == min(breaking)


@given(
    SENTENCE,
    WEIGHTS,
    TABLE,
    st.floats(0.01, 1),
    st.integers(1, 30),
    st.integers(1, 7),
    st.floats(-1, 3, width=16),
)
def test_no_limit_is_ever_exceeded(
    text: str,
    weights: dict[str, float],
    table: dict[str, list[str]],
    max_edits: float,
    max_queries: int,
    min_letters: int,
    bias: float,
) -> None:
    model = BagOfWords(weights, bias)
    limits = Limits(max_edits, max_queries, min_letters)
    attempt = attack(model, text, table.__getitem__, limits)
    assert attempt.queries == len(model.asked) == len(set(model.asked)) <= max_queries
    words = text.split()
    assert len(attempt.edits) <= max(1, max_edits * len(words) + 1e-6)
    assert attempt.verdict == model.verdict(attempt.texts)
    for edit in attempt.edits:
        assert words[edit.word] == edit.before
        assert len(edit.before) >= min_letters
        assert edit.after in table[edit.before]
        words[edit.word] = edit.after
    assert attempt.texts == (" ".join(words),)
    assert attempt.verdict.loss >= model.verdict((text,)).loss


def test_the_most_important_word_goes_first_and_the_attack_stops_when_it_is_through() -> None:
    model = BagOfWords({"great": 1.0, "lovely": 3.0, "movie": 0.5}, bias=-2.0)
    attempt = attack(model, "great lovely movie", character_edits(1), Limits())
    assert [edit.before for edit in attempt.edits] == ["lovely"]
    assert not attempt.verdict.correct
    # The original, each word left out, the candidates of one word.
    assert attempt.queries == 1 + 3 + len(character_edits(1)("lovely"))
    assert model.asked[:4] == [
        ("great lovely movie",),
        ("lovely movie",),
        ("great movie",),
        ("great lovely",),
    ]


def test_of_several_candidates_that_break_the_model_the_worst_is_taken() -> None:
    model = BagOfWords({"great": 1.0, "awful": -2.0, "boring": -1.0})
    table = {"great": ["unknown", "boring", "awful", "boring"]}
    attempt = attack(model, "great", table.__getitem__, Limits())
    assert attempt.texts == ("awful",)
    assert attempt.edits == (Edit(0, 0, "great", "awful"),)
    assert attempt.queries == 5  # the original, nothing, and three candidates


def test_what_breaks_the_model_goes_before_what_has_a_higher_loss() -> None:
    """With three classes, the prediction can change at a lower loss than another edit has."""
    verdicts = {
        "good": Verdict("yes", True, 0.5, 0.6),
        "": Verdict("yes", True, 0.6, 0.5),
        "close": Verdict("yes", True, 1.0, 0.37),
        "broken": Verdict("no", False, 0.9, 0.55),
    }
    attacks = [greedy_attack(("good",), of_words(lambda word: ["broken", "close"]), Limits())]
    [attempt] = run_side_by_side(attacks, lambda asked: [verdicts[t] for _, (t,) in asked], 1)
    assert attempt.texts == ("broken",)


def test_a_word_without_candidates_costs_no_edit() -> None:
    model = BagOfWords({"lovely": 3.0, "great": 2.0, "movie": 2.0}, bias=-3.5)
    table = {"lovely": [], "great": ["unknown"], "movie": ["unknown"]}
    attempt = attack(model, "lovely great movie", table.__getitem__, Limits(max_edits=0.67))
    assert attempt.texts == ("lovely unknown unknown",)
    assert not attempt.verdict.correct


def test_a_text_that_two_edits_lead_to_is_asked_about_once() -> None:
    model = BagOfWords({"great": 1.0})
    table = {"great": ["great lovely"], "lovely": ["lovely lovely"]}
    attempt = attack(model, "great lovely", table.__getitem__, Limits())
    assert model.asked == [
        ("great lovely",),
        ("lovely",),
        ("great",),
        ("great lovely lovely",),
    ]
    assert attempt.queries == 4


def test_a_model_that_is_wrong_already_is_not_attacked() -> None:
    model = BagOfWords({}, bias=-1.0)
    attempt = attack(model, "great lovely movie", character_edits(1), Limits())
    assert attempt == Attempt(("great lovely movie",), model.verdict(("",)), (), 1)


def test_a_text_without_words_is_left_alone() -> None:
    model = BagOfWords({}, bias=1.0)
    for text in ("", " ... ", "<mask>", "42"):
        assert attack(model, text, character_edits(1), Limits()).texts == (text,)


def test_a_long_text_leaves_half_of_the_queries_for_its_candidates() -> None:
    text = " ".join(f"word{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}" for i in range(100))
    model = BagOfWords({text.split()[50]: 3.0}, bias=-1.0)
    attempt = attack(model, text, lambda word: ["unknown"], Limits(max_queries=41))
    left_out = [texts for texts in model.asked[1:] if "unknown" not in texts[0]]
    assert len(left_out) == 20  # every fifth word, number 50 among them
    assert [edit.word for edit in attempt.edits] == [50]
    assert attempt.queries == 22


def test_candidates_never_make_a_special_token_or_repeat_the_word() -> None:
    assert [c for c in ("film", "", "<mask>", "[MASK]", "flim") if may_stand_in(c, "film")] == [
        "flim"
    ]
    model = BagOfWords({"film": 1.0}, bias=1.0)
    attempt = attack(model, "film", lambda word: ["<mask>", "film", "flim"], Limits())
    assert attempt.texts == ("flim",)
    assert ("<mask>",) not in model.asked


def test_only_the_chosen_text_of_a_pair_is_attacked() -> None:
    model = BagOfWords({"great": 2.0, "lovely": 1.0}, bias=-2.0)
    texts = ("great movie", "lovely movie")
    attacks = [greedy_attack(texts, of_words(character_edits(1)), Limits(), [1])]
    [attempt] = run_side_by_side(attacks, model.ask, 1)
    assert attempt.texts[0] == texts[0]
    assert [(edit.text, edit.before) for edit in attempt.edits] == [(1, "lovely")]
    assert not attempt.verdict.correct


@settings(max_examples=25)
@given(st.lists(SENTENCE, max_size=7), WEIGHTS, st.integers(1, 9))
def test_attacks_do_not_disturb_one_another(
    texts: list[str], weights: dict[str, float], at_most: int
) -> None:
    limits = Limits(max_edits=0.5, max_queries=40)
    batches: list[set[int]] = []
    model = BagOfWords(weights, bias=0.5)

    def ask(questions: list[tuple[int, Texts]]) -> list[Verdict]:
        batches.append({number for number, _ in questions})
        return model.ask(questions)

    attacks = (greedy_attack((text,), of_words(character_edits(1)), limits) for text in texts)
    together = run_side_by_side(attacks, ask, at_most)
    alone = [attack(BagOfWords(weights, 0.5), text, character_edits(1), limits) for text in texts]
    assert together == alone
    assert sum(attempt.queries for attempt in together) == len(model.asked)
    assert max(map(len, batches), default=0) == min(at_most, len(texts))


def test_an_answer_that_is_missing_is_an_error() -> None:
    attacks = [greedy_attack(("great movie",), of_words(character_edits(1)), Limits())]
    with pytest.raises(ValueError, match="zip"):
        run_side_by_side(attacks, lambda questions: [], 1)


@given(WORD, st.integers(0, 3), st.integers(1, 12))
def test_character_edits_are_a_fixed_choice(word: str, seed: int, at_most: int) -> None:
    everything = character_edits(seed, at_most=10**6)(word)
    some = character_edits(seed, at_most)(word)
    assert set(everything) == {typo for typos in NOISES.values() for typo in typos(word)}
    assert some == character_edits(seed, at_most)(word)
    assert len(some) == len(set(some)) == min(at_most, len(everything))
    assert set(some) <= set(everything)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_edits": 0}, "max_edits is 0: it must be a share"),
        ({"max_edits": 1.1}, "max_edits is 1.1"),
        ({"max_edits": math.nan}, "max_edits is nan"),
        ({"max_queries": 0}, "max_queries is 0: it must be a whole number, 1 or more"),
        ({"max_queries": 2.5}, "max_queries is 2.5"),
        ({"min_letters": True}, "min_letters is True"),
        ({"max_candidates": 0}, "max_candidates is 0: it must be a whole number, 1 or more"),
    ],
)
def test_limits_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**options)


def test_counts_below_one_are_refused() -> None:
    for call in (
        lambda: character_edits(1, at_most=0),
        lambda: run_side_by_side([], BagOfWords({}).ask, 0),
    ):
        with pytest.raises(UsageError, match=r"at_most is 0: it must be .*1 or more"):
            call()


def test_shares_of_words_are_exact() -> None:
    assert [Limits(max_edits=0.29).edits(n) for n in (1, 3, 100)] == [1, 1, 29]
    assert Limits(max_edits=1.0).edits(7) == 7


# WordNet

# Meanings in the order of the file: part of speech, words (with how often the sample texts have
# them in this meaning).
MEANINGS = [
    ("noun", {"movie": 7, "film": 9, "picture": 9, "motion_picture": 2, "moving-picture": 1}),
    ("noun", {"film": 1, "layer": 3}),
    ("verb", {"film": 2, "shoot": 4, "take": 0}),
    ("adj", {"good": 5, "Solomonic": 0}),
]
KINDS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}  # in the order of their numbers, from 1


def write_wordnet(folder: Path, meanings: Any = MEANINGS) -> None:
    """A WordNet of a few words, in the format of its own files (wndb(5WN), senseidx(5WN))."""
    folder.mkdir(parents=True)
    (folder / "lexnames").write_text("00\tall\t1\n")
    (folder / "index.sense").write_text("")
    counts = []
    for number, (kind, letter) in enumerate(KINDS.items(), 1):
        data, index = "  1 WordNet 3.0 Copyright: not the real one\n", {}
        for words in (words for of_kind, words in meanings if of_kind == kind):
            for word, count in words.items():
                index.setdefault(word.lower(), []).append(f"{len(data):08d}")
                counts.append(f"{word.lower()}%{number}:00:00:: 1 {count}")
            listed = " ".join(f"{word} 0" for word in words)
            data += f"{len(data):08d} 00 {letter} {len(words):02x} {listed} 000 | a meaning\n"
        (folder / f"data.{kind}").write_text(data)
        (folder / f"index.{kind}").write_text(
            "".join(
                f"{word} {letter} {len(at)} 0 {len(at)} 0 {' '.join(at)}\n"
                for word, at in sorted(index.items())
            )
        )
        (folder / f"{kind}.exc").write_text("films film\n" if kind == "noun" else "")
    (folder / "cntlist.rev").write_text("\n".join(sorted(counts)) + "\n")


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty folder that is all that NLTK has."""
    nltk = pytest.importorskip("nltk", reason="NLTK is not installed")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    wordnet_synonyms.cache_clear()
    yield tmp_path
    wordnet_synonyms.cache_clear()
    if hasattr(nltk.corpus.wordnet, "_unload"):  # it remembers what it has read
        nltk.corpus.wordnet._unload()


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_synonyms_of_wordnet(nltk_data: Path) -> None:
    write_wordnet(nltk_data / "corpora" / "wordnet")
    substitutions = wordnet_synonyms()
    # The first meaning first, in it the most frequent word; words alone; nothing twice.
    assert substitutions("film") == ["picture", "movie", "layer", "shoot", "take"]
    assert substitutions("Film") == ["Picture", "Movie", "Layer", "Shoot", "Take"]
    assert substitutions("MOVIE") == ["FILM", "PICTURE"]
    assert substitutions("good") == ["solomonic"]
    assert substitutions("films") == []  # no base form
    assert substitutions("unheard") == []
    # As Debian's wordnet-base has it: without lexnames and index.sense, in any folder.
    folder = nltk_data / "usr" / "share" / "wordnet"
    write_wordnet(folder)
    for name in ("lexnames", "index.sense"):
        (folder / name).unlink()
    (nltk_data / "corpora" / "wordnet").rename(nltk_data / "elsewhere")
    named = wordnet_synonyms(folder)
    for word in ("film", "Film", "MOVIE", "good", "films"):
        assert named(word) == substitutions(word)
    with pytest.raises(UsageError, match=r"--wordnet .*none cannot be read: No such file"):
        wordnet_synonyms(nltk_data / "none")


def test_a_missing_wordnet_is_named(nltk_data: Path) -> None:
    with pytest.raises(UsageError, match=r"^substitution by synonyms needs NLTK's WordNet: python"):
        wordnet_synonyms()


def test_a_missing_nltk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(UsageError, match="needs NLTK's WordNet: pip install nltk, then python"):
        wordnet_synonyms()


# TextAttack

LABELS = ("no", "yes")
Run = Callable[..., list[Attempt]]


def test_a_missing_textattack_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textattack", None)
    with pytest.raises(
        UsageError, match=r"need it installed \(pip install textattack\), but it ca"
    ):
        run_recipe("PWWSRen2019", [], LABELS, lambda texts: [], max_queries=1, seed=1)


def test_textdefender_gives_a_recipe_50_queries_for_each_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budgets = []

    class Attack:
        goal_function = SimpleNamespace()
        clear_cache = staticmethod(lambda: None)

        def attack(self, given: Any, label: int) -> Any:
            budgets.append(self.goal_function.query_budget)
            text = SimpleNamespace(tokenizer_input=next(iter(given.values())))
            result = SimpleNamespace(attacked_text=text, raw_output=[0.5, 0.5])
            return SimpleNamespace(perturbed_result=result)

    library = SimpleNamespace(
        models=SimpleNamespace(wrappers=SimpleNamespace(ModelWrapper=object)),
        shared=SimpleNamespace(utils=SimpleNamespace(set_seed=lambda seed: None)),
    )
    monkeypatch.setattr(textattack_recipes, "_library", lambda: library)
    monkeypatch.setattr(textattack_recipes, "_build", lambda *given: Attack())
    problem = Classification(LABELS)
    examples = [Example(i, (text,), "no") for i, text in enumerate(("a good film", "good", "..."))]
    subject = SimpleNamespace(problem=problem, logits=lambda texts: [[0.0, 0.0]] * len(texts))
    for words, wanted in (
        (["--standard", "textdefender"], [150, 50, 50]),
        (["--standard", "textdefender", "--max-queries", "9"], [9, 9, 9]),
        ([], [200, 200, 200]),
    ):
        options = command._parser().parse_args(["--path", "x", "--textattack", "Any2020", *words])
        resolve(options)
        [part] = TextAttack.from_options(options, SimpleNamespace(problem=problem))
        assert 0 < part.cost <= 0.7 * 50 * 20
        budgets.clear()
        assert len(part.run(subject, examples)) == 3
        assert budgets == wanted


@pytest.fixture(scope="session")
def textattack(tmp_path_factory: pytest.TempPathFactory) -> None:
    """TextAttack, and a few stop words for it, which it would else download."""
    folder = tmp_path_factory.mktemp("nltk") / "corpora" / "stopwords"
    folder.mkdir(parents=True)
    (folder / "english").write_text("the\na\nis\n")
    nltk = pytest.importorskip("nltk", reason="NLTK is not installed")
    nltk.data.path.append(str(folder.parent.parent))
    pytest.importorskip("textattack", reason="TextAttack is not installed", exc_type=ImportError)


@pytest.fixture
def recipe(textattack: None) -> Run:
    """Runs a recipe on a bag of words, which keeps what it is asked."""

    def run(name: str, examples: list[Example], model: BagOfWords, **options: Any) -> Any:
        def logits(asked: list[Texts]) -> list[list[float]]:
            verdicts = model.ask([(0, texts) for texts in asked])
            right = [math.exp(-verdict.loss) for verdict in verdicts]
            return [[5.0, 5.0 + math.log(p) - math.log1p(-p)] for p in right]

        settings = {"max_queries": 60, "seed": 1, **options}
        return run_recipe(name, examples, LABELS, logits, **settings)

    return run


def test_a_recipe_breaks_a_model(recipe: Run) -> None:
    model = BagOfWords({"great": 2.0, "lovely": 1.0}, bias=-1.5)
    examples = [
        Example(0, ("A great  film, <s> truly.", "The plot is fine."), "yes"),
        Example(1, ("The rest is awful.", ""), "no"),
        Example(2, ("The rest is awful.", ""), "yes"),
        Example(3, ("The rest is awful.", ""), "yes"),
    ]
    broken, stands, wrong, again = recipe("DeepWordBugGao2018", examples, model)
    assert [edit.before for edit in broken.edits] == ["great"]
    assert broken.texts[0] == f"A {broken.edits[0].after}  film, <s> truly."
    assert broken.texts[1] == examples[0].texts[1]
    assert stands.verdict.correct
    assert stands.verdict.prediction == "no"
    assert wrong == Attempt(examples[2].texts, model.verdict(("",)), (), 1)
    assert wrong == again
    verdict = model.verdict(broken.texts)
    assert (broken.verdict.prediction, broken.verdict.correct) == ("no", False)
    assert broken.verdict.loss == pytest.approx(verdict.loss)
    assert broken.verdict.confidence == pytest.approx(verdict.confidence)
    assert broken.queries + stands.queries + 2 == len(model.asked)


def test_a_recipe_keeps_to_its_queries_and_texts(recipe: Run) -> None:
    model = BagOfWords({"great": 2.0, "lovely": 1.0}, bias=0.5)
    examples = [Example(0, ("A great film, truly.", "A lovely plot, again."), "yes")]
    for max_queries in (1, 7):
        model.asked.clear()
        [attempt] = recipe("DeepWordBugGao2018", examples, model, max_queries=max_queries)
        assert attempt.queries == len(model.asked) == max_queries
    [attempt] = recipe("DeepWordBugGao2018", examples, model, editable=[1])
    assert attempt.texts[0] == examples[0].texts[0]
    assert {edit.text for edit in attempt.edits} == {1}


def test_a_recipe_does_the_same_again_whatever_else_is_attacked(recipe: Run) -> None:
    def model() -> BagOfWords:
        return BagOfWords({"great": 2.0, "lovely": 1.0}, bias=-1.5)

    first = Example(0, ("A great and lovely film about wonderful gardens.",), "yes")
    second = Example(1, ("Some great actors in it.",), "yes")
    both = recipe("DeepWordBugGao2018", [first, second], model())
    assert recipe("DeepWordBugGao2018", [second], model()) == both[1:]
    others = {recipe("DeepWordBugGao2018", [second], model(), seed=s)[0].texts for s in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nonesuch2020", "has no recipe Nonesuch2020: it must be one of A2TYoo2021, .*PWWSRen2019"),
        ("AttackRecipe", "has no recipe AttackRecipe"),
        ("InputReductionFeng2018", "does not try to change a classifier's decision"),
        ("HotFlipEbrahimi2017", "HotFlipEbrahimi2017 cannot be set up"),  # needs gradients
    ],
)
def test_a_recipe_that_cannot_be_run_is_named(recipe: Run, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(name, [Example(0, ("A great film.",), "yes")], BagOfWords({}))
