"""The attacks of the literature: each is what its paper says, and finds what there is to find."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_robustness import FEW, Measure, column, pairs, robustness, values
from test_robustness import measure as measure  # fixtures
from test_robustness import solved as solved
from test_text_attacks import (
    SENTENCE,
    TABLE,
    WEIGHTS,
    BagOfWords,
    attack,
    single_edits,
    write_wordnet,
)

from alum_fairseq import UsageError
from alum_fairseq.problems import Classification
from alum_fairseq.robustness import command
from alum_fairseq.robustness.attacks.bugs import bugs, lookalikes, splits
from alum_fairseq.robustness.attacks.greedy import LEFT_OUT, MASKED, WEIGHTED, Limits
from alum_fairseq.robustness.attacks.language_model import LanguageModel
from alum_fairseq.robustness.attacks.noise import drops, swaps
from alum_fairseq.robustness.attacks.part_of_speech import keep_part_of_speech
from alum_fairseq.robustness.attacks.synonyms import read_synonyms, write_synonyms
from alum_fairseq.robustness.attacks.wordnet import wordnet_synonyms
from alum_fairseq.robustness.attacks.words import (
    MIN_LETTERS,
    STOP_WORDS,
    Editor,
    content_words,
    edits_between,
    of_words,
    written_like,
)
from alum_fairseq.robustness.parts import bert_attack, greedy, pwws, substitution
from alum_fairseq.robustness.parts.clean import Clean
from alum_fairseq.robustness.parts.greedy import GreedyAttack
from alum_fairseq.robustness.report.compare import about, joined
from alum_fairseq.robustness.subject import Subject
from alum_fairseq.robustness.types import Example, Verdict

RANKS = (LEFT_OUT, MASKED, WEIGHTED)

# The search


@pytest.mark.parametrize("importance", RANKS)
@settings(max_examples=40, deadline=None)
@given(SENTENCE, WEIGHTS, TABLE, st.floats(-2, 2, width=16), st.integers(1, 3))
def test_what_is_claimed_is_what_brute_force_finds(
    importance: str,
    text: str,
    weights: dict[str, float],
    table: dict[str, list[str]],
    bias: float,
    allowed: int,
) -> None:
    """One edit: as good as trying everything. More: never a success that is not to be had."""
    model = BagOfWords(weights, bias)
    editor, clean = Editor((text,)), model.verdict((text,))
    limits = Limits(min(1.0, (allowed + 0.5) / editor.words), max_queries=2000)
    attempt = attack(model, text, table.__getitem__, limits, importance=importance)
    choices = [[(p, c) for c in table[editor.word(p)]] for p in editor.places()]
    reachable = {
        editor.replaced(dict(edits))
        for size in range(min(allowed, len(choices)) + 1)
        for words in itertools.combinations(choices, size)
        for edits in itertools.product(*words)
    }
    assert attempt.texts in reachable
    assert attempt.verdict == model.verdict(attempt.texts)
    if clean.correct and not attempt.verdict.correct:
        assert any(not model.verdict(texts).correct for texts in reachable)
    if clean.correct and any(not model.verdict(t).correct for t in single_edits(text, table.get)):
        assert not attempt.verdict.correct
    one = attack(model, text, table.__getitem__, Limits(0.01, 2000), importance=importance)
    if one.verdict.correct:
        everything = [clean, *map(model.verdict, single_edits(text, table.get))]
        assert one.verdict.loss == max(verdict.loss for verdict in everything)


def test_words_are_ranked_as_each_paper_has_it() -> None:
    """Left out, "great" costs most; with another word in its place "lovely"; PWWS goes by gain."""
    model = BagOfWords({"great": 3.0, "lovely": 2.0, "movie": 1.0, "UNK": 0.0}, bias=-0.5)
    model.weights |= {"[UNK]": 0.0, "good": 2.5, "nice": 1.9, "trash": -1.0}
    table = {"great": ["good"], "lovely": ["nice"], "movie": ["trash"]}.__getitem__
    text, limits = "lovely great movie", Limits(0.4, 100)

    def first(importance: str, **changed: float) -> str:
        tried = BagOfWords({**model.weights, **changed}, model.bias)
        attack(tried, text, table, limits, importance=importance)
        edited = [t for (t,) in tried.asked[1:] if len(t.split()) == 3 and "[UNK]" not in t]
        return next(
            new for old, new in zip(text.split(), edited[0].split(), strict=True) if old != new
        )

    assert first(LEFT_OUT) == "good"
    assert first(MASKED) == "good"
    # What stands in the gap counts, for the one that looks at it.
    assert first(LEFT_OUT, UNK=-9.0) == "good"
    # Of the weighted order by hand: softmax of what the probability loses, times the best gain.
    probability = lambda score: 1 / (1 + math.exp(-score))  # noqa: E731
    whole = probability(5.5)
    losses = [whole - probability(5.5 - w) for w in (2.0, 3.0, 1.0)]
    softmax = np.exp(losses) / np.exp(losses).sum()
    gains = [whole - probability(5.5 - less) for less in (0.1, 0.5, 2.0)]
    weighted = attack(model, text, table, limits, importance=WEIGHTED)
    assert int(np.argmax(softmax * gains)) == 2
    assert [edit.before for edit in weighted.edits] == ["movie"]


def test_a_gap_is_marked_for_those_that_mask() -> None:
    asked = {}
    for importance in RANKS:
        model = BagOfWords({"great": 1.0}, bias=5.0)
        attack(model, "great lovely movie", lambda word: ["x"], Limits(), importance=importance)
        asked[importance] = model.asked[1:4]
    assert asked[LEFT_OUT][0] == ("lovely movie",)
    assert asked[MASKED] == asked[WEIGHTED]
    assert asked[MASKED][0] == ("[UNK] lovely movie",)


def test_pwws_ranks_by_its_candidates_and_asks_about_each_once() -> None:
    model = BagOfWords({"great": 1.0}, bias=5.0)
    attempt = attack(
        model, "great lovely movie", lambda word: ["x", "y"], Limits(0.01), importance=WEIGHTED
    )
    assert attempt.queries == len(model.asked) == 1 + 3 + 6


def test_candidates_and_queries_have_limits() -> None:
    model = BagOfWords({}, bias=1.0)
    words = "great lovely movie again"
    many = lambda word: [word + end for end in "abcdefgh"]  # noqa: E731
    few = attack(model, words, many, Limits(0.01, 100, max_candidates=2))
    assert few.queries == 1 + 4 + 4 * 2
    few = attack(model, words, many, Limits(0.01, None, max_candidates=2))
    assert few.queries == 2 * 4
    assert Limits(max_queries=None, max_candidates=50).queries(12) == 600
    assert Limits(max_queries=None).queries(0) == 8


def test_what_is_not_admitted_is_not_asked_about() -> None:
    model = BagOfWords({"great": 1.0, "awful": -2.0, "boring": -1.0})
    options = {"admits": lambda texts: ["awful" not in text for (text,) in texts]}
    attempt = attack(model, "great", lambda word: ["awful", "boring"], Limits(), **options)
    assert attempt.texts == ("boring",)
    assert ("awful",) not in model.asked


def test_a_confident_model_still_tells_candidates_apart() -> None:
    problem = Classification(("no", "yes"))
    target = problem.targets([("yes",)])[0]
    logits = torch.tensor([[0.0, 90.0], [0.0, 80.0], [0.0, 400.0], [2.0, 1.0]])
    found = [problem.verdict(row, target).loss for row in logits]
    assert found[2] < found[0] < found[1] < found[3]
    expected = problem.loss(logits[3:].double(), target[None])
    assert found[3] == pytest.approx(float(expected), rel=1e-12)


# Candidates


def test_the_five_kinds_of_bugs() -> None:
    assert splits("film") == ["f ilm", "fi lm", "fil m"]
    assert splits("terrific") == []
    assert {"f1lm", "fi1m", "fikm"} <= set(lookalikes("film"))
    kinds = {
        "split": set(splits("great")),
        "drop": set(drops("great")),
        "swap": set(swaps("great")),
        "look": set(lookalikes("great")),
        "word": {"grand", "fine"},
    }
    near = {"great": ["grand", "fine"]}
    found = bugs(1, near.__getitem__)("great")
    for size in (5, 10):  # of every kind in turn
        for kind, those in kinds.items():
            assert len(those & set(found[:size])) >= min(size // 5, len(those)), kind
    assert set(found) == set().union(*kinds.values())
    assert set(bugs(1)("great")) == set(found) - kinds["word"]
    assert bugs(1)("great") == bugs(1)("great")
    assert len({tuple(bugs(seed)("great")) for seed in range(4)}) > 1
    # A stop word is misspelt, but no other word stands for it, nor it for another word.
    near = {"never": ["always", "hardly"], "mostly": ["Most", "chiefly"]}.__getitem__
    assert bugs(1, near)("never") == bugs(1)("never")
    assert set(bugs(1, near)("mostly")) == {*bugs(1)("mostly"), "chiefly"}


def test_content_words_alone() -> None:
    editor = Editor(("This is not a great film",))
    places = editor.places(2)
    found = content_words(of_words(lambda word: ["never", "fine"]))(editor, places)
    assert {editor.word(place): words for place, words in found.items()} == {
        "great": ["fine"],
        "film": ["fine"],
    }
    assert {"not", "never", "no", "the", "but"} <= STOP_WORDS
    assert not {"good", "bad", "film"} & STOP_WORDS
    assert [written_like(w, "film") for w in ("Movie", "MOVIE", "movie", "A")] == [
        *("Film", "FILM", "film", "Film")
    ]


def test_the_part_of_speech_is_that_in_its_place() -> None:
    """By a tagger to which a word is a verb after "to"."""

    def tag(words: tuple[str, ...]) -> list[str]:
        before = ("", *words)
        return [
            "verb" if last == "to" or word in ("eat",) else "noun"
            for last, word in zip(before, words, strict=False)
        ]

    editor = Editor(("We like to film a film",))
    candidates = of_words(lambda word: ["shoot", "eat"])
    kept = keep_part_of_speech(candidates, tag)(editor, [(0, 3), (0, 5)])
    assert kept == {(0, 3): ["shoot", "eat"], (0, 5): ["shoot"]}
    assert keep_part_of_speech(candidates, None) is candidates


def test_synonyms_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.tsv"
    path.write_text("film\tmovie picture\n\nGood\tfine\n", encoding="utf-8")
    found = read_synonyms(path)
    assert found("film") == ["movie", "picture"]
    assert found("Film") == ["Movie", "Picture"]
    assert found("good") == ["fine"]
    assert found("bad") == []
    path.write_text("a good film\t1\n")
    with pytest.raises(UsageError, match=r"tsv:1: before the tab stands 'a good film': it must be"):
        read_synonyms(path)
    path.write_text("film movie\n")
    with pytest.raises(UsageError, match=r"synonyms.tsv:1: there is no tab between"):
        read_synonyms(path)
    path.write_bytes(b"film\t\xff\n")
    with pytest.raises(UsageError, match="is no text in UTF-8"):
        read_synonyms(path)
    with pytest.raises(UsageError, match=r"none.tsv does not exist"):
        read_synonyms(tmp_path / "none.tsv")


def test_neighbours_of_word_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alum_fairseq.robustness.attacks.synonyms._ROWS", 7)
    vectors = np.random.default_rng(1).normal(size=(30, 4))
    lines = [f"w{i} {' '.join(map(str, row))}\n" for i, row in enumerate(vectors)]
    path, output = tmp_path / "vectors.txt", tmp_path / "synonyms.tsv"
    path.write_text("30 4\n" + "".join(lines))
    count = write_synonyms(path, output, most=3, least=0.8)
    table = dict(line.split("\t") for line in output.read_text().splitlines())
    assert count == len(table)
    for i, row in enumerate(vectors):
        cosine = vectors @ row / np.linalg.norm(vectors, axis=1) / np.linalg.norm(row)
        others = [j for j in np.argsort(-cosine) if j != i and cosine[j] >= 0.8][:3]
        assert table.get(f"w{i}", "").split() == [f"w{j}" for j in others]
    assert 0 < count < 30
    for text, message in {
        "a 1 2\nb 1\n": r":2: a word and its vector are expected, not b 1",
        "a 1 x\n": ":1: a word and its vector",
        "a 0 0\n": ":1: a word and its vector",
        "": "has no vectors",
    }.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            write_synonyms(path, output, most=3, least=0.5)


# A language model


@pytest.fixture(scope="module")
def language_model(cases: dict[str, Any]) -> LanguageModel:
    return LanguageModel(cases["single"].path, "--attack-lm", "cpu")


def test_the_words_that_fit_are_those_of_the_whole_model(
    language_model: LanguageModel, cases: dict[str, Any]
) -> None:
    """Computed a sentence at a time, at every position, without padding."""
    model, words = language_model._model, language_model._dictionary
    mask = words.index("<mask>")
    text = " ".join(word for word in cases["single"].rows[20]["a"].split() if word.isalpha())
    editor = Editor((text, " ".join(text.split()[:5])))
    places = [(0, i) for i in range(0, len(text.split()), 3)] + [(1, 2)]
    for masked in (True, False):
        found = language_model.fitting(editor, places, 6, masked)
        assert list(found) == places
        for (row, at), best in found.items():
            symbols = [words.index(word) for word in (text.split(), text.split()[:5])[row]]
            symbols[at] = mask if masked else symbols[at]
            tokens = torch.tensor([[words.bos(), *symbols, words.eos()]])
            with torch.no_grad():
                scores = model(tokens)[0][0, 1 + at]
            order = [words[i] for i in scores.argsort(descending=True).tolist()]
            expected = [word for word in order if word.isalpha() and not word.startswith("madeup")]
            expected = [written_like(editor.word((row, at)), word) for word in expected]
            assert best == expected[:6]
    seen, unseen = (language_model.fitting(editor, places, 6, m) for m in (False, True))
    assert seen != unseen
    assert language_model.fitting(editor, [], 6, True) == {}


def test_a_long_text_is_cut_around_the_gap(language_model: LanguageModel) -> None:
    words = language_model._words[1][:200]
    editor = Editor((" ".join(words),))
    (best,) = language_model.fitting(editor, [(0, 150)], 3, True).values()
    near = Editor((" ".join(words[150 - 19 : 169]),))
    assert best == language_model.fitting(near, [(0, 19)], 3, True)[0, 19]


def test_vectors_are_the_means_of_the_features(
    language_model: LanguageModel, cases: dict[str, Any]
) -> None:
    texts = [row["a"] for row in cases["single"].rows[:9]]
    model, words = language_model._model, language_model._dictionary
    for text, vector in zip(texts, language_model.vectors(texts), strict=True):
        symbols = [words.index(word) for word in text.split()]
        tokens = torch.tensor([[words.bos(), *symbols, words.eos()]])
        with torch.no_grad():
            mean = model(tokens, features_only=True)[0][0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


# As parts


@pytest.fixture
def tools(solved: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What the attacks need, for the words of the test's data."""
    rows = solved["single"].rows
    words = sorted({word for row in rows for word in row["a"].split() if word.isalpha()})
    shifted = [*words[7:], *words[:7]]
    synonyms = tmp_path / "synonyms.tsv"
    synonyms.write_text("".join(f"{a}\t{b}\n" for a, b in zip(words, shifted, strict=True)))
    meanings = [("noun", {a.lower(): 1, b.lower(): 1}) for a, b in itertools.pairwise(words)]
    write_wordnet(tmp_path / "wn", meanings)
    state = torch.load(solved["single"].path, weights_only=False)
    attack_lm = save_language_model(state, tmp_path / "lm.pt", head=1.0)
    return {"synonyms": synonyms, "wordnet": tmp_path / "wn", "attack_lm": attack_lm}


def save_language_model(state: dict[str, Any], path: Path, head: float) -> Path:
    """A classifier's encoder as a masked language model whose biases are of this size."""
    weights = {name: w for name, w in state["model"].items() if "classification_heads" not in name}
    for name in ("bias", "dense.bias", "layer_norm.bias"):
        bias = weights[f"encoder.lm_head.{name}"]
        weights[f"encoder.lm_head.{name}"] = head * torch.linspace(-0.1, 0.1, len(bias))
    settings = {**state["cfg"], "task": {**state["cfg"]["task"], "_name": "masked_lm"}}
    torch.save({**state, "model": weights, "cfg": settings}, path)
    return path


ATTACKS = ["textbugger", "pwws", "textfooler", "bert-attack", "bae"]


@pytest.fixture
def attacked(
    measure: Measure, tools: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    """Run attacks with all that they need."""
    monkeypatch.setattr(f"{pwws.__name__}.wordnet_synonyms", wordnet_synonyms)
    return lambda **chosen: measure(**{"parts": ATTACKS, "max_edits": 0.5, **tools, **chosen})


def test_the_attacks_of_the_literature(attacked: Any, tools: dict[str, Any]) -> None:
    found = attacked()
    assert list(found.records) == ["clean", *ATTACKS]
    near = read_synonyms(tools["synonyms"])
    for kind in ATTACKS:
        keys = [key for key in values(found.report) if key.startswith(f"{kind}.")]
        names = ("accuracy", "success", "changed", "queries")
        assert keys == [f"{kind}.{name}" for name in names]
        outcomes = list(pairs(found, kind))
        edited = [(e, r) for e, r in outcomes if r["edits"]]
        assert any(not record["correct"] for _, record in edited), kind
        for example, record in edited:
            changes = edits_between(example.texts, tuple(record["texts"]))
            if kind != "textbugger":
                assert len(changes) == record["edits"]
                assert all(c.after.isalpha() and c.after.lower() not in STOP_WORDS for c in changes)
            if kind == "textfooler":
                assert all(c.after in near(c.before) for c in changes)
            if kind == "pwws":
                meant = wordnet_synonyms(tools["wordnet"])
                assert all(c.after in meant(c.before) for c in changes)
        shares = [
            record["edits"] / Editor(example.texts).words
            for example, record in edited
            if not record["correct"]
        ]
        broken = 100 * sum(shares) / len(shares)
        assert values(found.report)[f"{kind}.changed"] == pytest.approx(broken, rel=1e-5)
    assert column(found, "bae", "texts") != column(found, "bert-attack", "texts")


def test_each_attack_searches_as_its_paper_has_it(
    attacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which rank, from which length of a word on, with or without a sight of the word."""
    searches: list[tuple[str, int]] = []
    hidden: list[bool] = []
    search, fitting = greedy.greedy_attack, bert_attack.fitting_words

    def noted(texts: Any, candidates: Any, limits: Limits, *rest: Any) -> Any:
        searches.append((rest[1], limits.min_letters))
        return search(texts, candidates, limits, *rest)

    def fits(model: Any, most: int, masked: bool) -> Any:
        hidden.append(masked)
        return fitting(model, most, masked)

    monkeypatch.setattr(greedy, "greedy_attack", noted)
    monkeypatch.setattr(bert_attack, "fitting_words", fits)
    expected = {
        "textbugger": (LEFT_OUT, MIN_LETTERS),
        "pwws": (WEIGHTED, 2),
        "textfooler": (LEFT_OUT, 2),
        "bert-attack": (MASKED, 2),
        "bae": (LEFT_OUT, 2),
    }
    for kind, ranked in expected.items():
        searches.clear()
        hidden.clear()
        attacked(parts=kind)
        assert set(searches) == {ranked}, kind
        assert set(hidden) == {"bert-attack": {False}, "bae": {True}}.get(kind, set())


def test_a_model_that_changes_its_answer_is_noted() -> None:
    asked = [Example(number, ("text",), "a") for number in range(3)]
    losses = iter([0.5, 0.7, 0.9, 0.5, 0.8, 0.9])

    def verdicts(asked: list[Any]) -> list[Verdict]:
        return [Verdict("a", True, next(losses), 0.9) for _ in asked]

    records = Clean().run(SimpleNamespace(verdicts=verdicts), asked)
    assert [record["steady"] for record in records] == [True, False, True]


def test_options_of_the_attacks_of_the_literature(
    attacked: Any, tools: dict[str, Any], tmp_path: Path
) -> None:
    """Each has its effect, and none on an attack that does not read it."""
    usual = attacked(parts=["textbugger", "textfooler"])
    four = attacked(parts="textbugger", synonyms=None)
    assert column(four, "textbugger", "texts") != column(usual, "textbugger", "texts")
    other = tmp_path / "other.tsv"
    other.write_text(tools["synonyms"].read_text().lower().replace("\t", "\t" + "film "))
    changed = attacked(parts="textfooler", synonyms=other)
    assert any("film" in text for (text,) in column(changed, "textfooler", "texts"))
    one = attacked(parts="textbugger", max_candidates=1)
    assert max(column(one, "textbugger", "queries")) <= 1 + 2 * 40
    assert column(one, "textbugger", "queries") != column(four, "textbugger", "queries")


def test_a_language_model_that_knows_no_words_is_refused(
    solved: dict[str, Any], tmp_path: Path
) -> None:
    """A classifier, and an encoder whose masked-LM head was never trained."""
    case = solved["single"]
    state = torch.load(case.path, weights_only=False)
    untrained = save_language_model(state, tmp_path / "untrained.pt", head=0.0)
    fine_tuned = save_language_model(state, tmp_path / "fine-tuned.pt", head=1.0)
    known = torch.load(fine_tuned, weights_only=False)
    heads = {name: w for name, w in state["model"].items() if "classification_heads" in name}
    torch.save({**known, "model": known["model"] | heads}, fine_tuned)  # that kept the trained head
    reason = (
        "does not know which words fit: it was fine-tuned, or its masked-LM head was never "
        "trained; name a pretrained RoBERTa, such as roberta.base/model.pt"
    )
    usual = {"path": case.path, "input": case.table, "output": tmp_path / "out", "cpu": True}
    for path in (case.path, untrained, fine_tuned):
        done = robustness(**usual, attack_lm=path, parts="bae")
        assert done.status == 2
        assert done.err.endswith(f"error: --parts bae: --attack-lm {path} {reason}\n")
    done = robustness(**{**usual, **FEW}, attack_lm=untrained)
    assert done.status == 0
    left_out = f"left out: bert-attack, bae: --attack-lm {untrained} {reason}\n"
    assert done.err.count(left_out) == done.err.count(reason) == 1


@pytest.mark.parametrize("tagged", [False, True])
def test_a_report_says_what_was_left_out_and_how_words_were_chosen(
    solved: dict[str, Any],
    tools: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tagged: bool,
) -> None:
    """On the screen, in report.json, and on both pages, in the same words."""

    def tag(words: tuple[str, ...]) -> list[str]:
        return ["noun or verb"] * len(words)

    monkeypatch.setattr(substitution, "tagger", lambda: tag if tagged else None)
    case, out = solved["single"], tmp_path / "out"
    given = {"synonyms": tools["synonyms"], "wordnet": tools["wordnet"], "output": out}
    done = robustness(**{"path": case.path, "input": case.table, **FEW, **given})
    assert done.status == 0
    how = "not kept: NLTK's tagger is not installed"
    if tagged:
        how = "kept, by NLTK's tagger"
    notes = [
        f"in pwws, textfooler: part of speech is {how}",
        "left out: bert-attack, bae: --attack-lm FILE is not given",
    ]
    report = json.loads((out / "report.json").read_text())
    assert report["notes"] == notes
    assert report["parts"]["textfooler"]["tagged"] == tagged
    page, text = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    for note in notes:
        assert f"{note}\n" in done.err
        assert f"\n- {note}\n" in text.replace("\\", "")
        assert f"\n{note[0].upper()}{note[1:]}.<br>" in page.replace("&#39;", "'")


def test_a_standard(attacked: Any, solved: Any) -> None:
    options = dict.fromkeys(("max_edits", "max_queries"))
    found = attacked(parts=["textbugger"], standard="textdefender", **options)
    unlimited = "the limit of similarity, as there is no --similarity-encoder"
    [note] = found.report["notes"]
    assert note == f"attacks on words: --standard textdefender, but for {unlimited}"
    names = ("max_edits", "max_candidates", "max_queries", "min_similarity")
    assert [found.settings[name] for name in names] == [0.3, 50, None, 0.84]
    assert max(column(found, "textbugger", "queries")) > 200
    for example, record in pairs(found, "textbugger"):
        words = len(example.texts[0].split())
        assert record["edits"] <= max(1, 0.3 * words)
        assert record["queries"] <= 50 * words
    given = attacked(
        parts=["textbugger"], standard="textdefender", max_edits=0.1, max_queries=9,
        similarity_encoder=solved["single"].path,
    )  # fmt: skip
    [note] = given.report["notes"]
    but = "--max-edits 0.1, --max-queries 9"
    assert note == f"attacks on words: --standard textdefender, but for {but}"
    assert [given.settings[name] for name in names[:3]] == [0.1, 50, 9]
    assert max(column(given, "textbugger", "queries")) <= 9


def test_similarity_is_a_limit_where_an_encoder_is_named(attacked: Any, solved: Any) -> None:
    encoder = {"similarity_encoder": solved["single"].path}
    free = attacked(parts=["textfooler"])
    loose = attacked(parts=["textfooler"], **encoder, min_similarity=-1)
    assert "similarity" not in free.records["textfooler"][0][0]
    cosines = column(loose, "textfooler", "similarity")
    assert column(loose, "textfooler", "texts") == column(free, "textfooler", "texts")
    broken = [
        r["similarity"] for _, r in pairs(loose, "textfooler") if r["edits"] and not r["correct"]
    ]
    assert values(loose.report)["textfooler.similarity"] == pytest.approx(
        sum(broken) / len(broken), rel=1e-5
    )
    least = sorted(broken)[-1] + 1e-6
    strict = attacked(parts=["textfooler"], **encoder, min_similarity=least)
    assert min(column(strict, "textfooler", "similarity")) >= least > min(cosines)


def test_what_an_attack_lacks_is_named(solved: dict[str, Any], tmp_path: Path) -> None:
    case = solved["single"]
    usual = {"path": case.path, "input": case.table, "output": tmp_path / "out", "cpu": True}
    (tmp_path / "alone.pt").write_bytes(case.path.read_bytes())
    for wrong, message in (
        ({"parts": "textfooler"}, "--parts textfooler: --synonyms FILE is not given"),
        ({"parts": "bae"}, "--parts bae: --attack-lm FILE is not given"),
        ({"synonyms": "none"}, "--synonyms none: there is no such file"),
        ({"attack_lm": "none"}, "--attack-lm none: there is no such file"),
        ({"similarity_encoder": "none"}, "--similarity-encoder none: there is no such file"),
        ({"similarity_encoder": case.table, "min_similarity": 2}, "--min-similarity is 2: a cos"),
        ({"max_candidates": 0}, "--max-candidates is 0: it must be 1 or more"),
        ({"attack_lm": case.table, "parts": "bae"}, "single.jsonl is no checkpoint"),
    ):
        done = robustness(**{**usual, **wrong})
        assert (done.status, len(done.err.splitlines())) == (2, 1), done.err
        assert message in done.err


def test_what_is_in_a_wordnet_is_a_setting_not_where_it_lies(tmp_path: Path) -> None:
    settings = []
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.noun").write_text(content)
        own = pwws.PWWS.own_fields(SimpleNamespace(wordnet=tmp_path / name))
        settings.append(pwws.PWWS(1, None, Limits(), **own).settings)
    assert settings[0] == settings[1] != settings[2]
    of_nltk = pwws.PWWS.own_fields(SimpleNamespace(wordnet=None))
    assert pwws.PWWS(1, None, Limits(), **of_nltk).settings["sha256"] is None


# The temperature


class Tempered(GreedyAttack):
    """A word has two candidates; that which leads nowhere raises the loss more."""

    kind = "tempered"

    def candidates(self) -> Any:
        return of_words({"first": ["both", "near"], "second": ["more"]}.__getitem__)


def subject_of(
    labels: str, scale: float = 1.0, attacked: list[Example] | None = None
) -> tuple[Subject, list[int]]:
    """Of logits by the words of a text; and how many texts it is asked about at a time."""
    asked: list[int] = []

    def logits(texts: list[Any], max_tokens: int) -> torch.Tensor:
        asked.append(len(texts))
        rows = []
        for (text,) in texts:
            row = [0.0, -3.0, -3.0]
            row[1:] = [-1.2, -1.2] if "both" in text else row[1:]
            row[1] = -0.8 if "near" in text else row[1]
            row[1] += 1.0 * ("more" in text)
            rows.append(row[: len(labels)])
        return scale * torch.tensor(rows)

    problem = Classification(tuple(labels))
    predictor = SimpleNamespace(problem=problem, logits=logits, model=torch.nn.Identity())
    attacked = attacked or [Example(0, ("first second",), "a")]
    return Subject(predictor, None, 100, 1, attacked), asked


def test_what_survives_is_attacked_again_at_other_temperatures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack, examples = Tempered(1, None, Limits(1.0)), [Example(0, ("first second",), "a")]
    subject, asked = subject_of("abc")
    [record] = attack.run(subject, examples)
    assert (record["correct"], record["texts"]) == (False, ["near more"])
    assert record["confidence"] == pytest.approx(float(torch.tensor([0.0, 0.2, -3]).softmax(0)[1]))
    assert record["queries"] <= 8
    often = len(asked)
    subject, asked = subject_of("ab")
    attack.run(subject, examples)
    assert len(asked) < often / 2  # two classes: all temperatures rank alike
    monkeypatch.setattr(Tempered, "_temperatures", lambda *given: [])
    [record] = attack.run(subject_of("abc")[0], examples)
    assert record["correct"]


@pytest.mark.parametrize(("calibrated", "broken"), [(1.0, True), (0.1, False), (100.0, True)])
def test_a_high_and_a_low_temperature_are_tried(
    monkeypatch: pytest.MonkeyPatch, calibrated: float, broken: bool
) -> None:
    """At 1 and below, the way begins with the change that brings one wrong answer nearer; it is
    the one that brings both nearer that leads on. From 10 on that is seen."""
    subject, _ = subject_of("abc")

    def logits(texts: list[Any], max_tokens: int) -> torch.Tensor:
        rows = []
        for (text,) in texts:
            row = [0.0, -1 + 0.6 * ("near" in text), -1 + 0.8 * ("more" in text)]
            row[1:] = [each + 0.5 * ("both" in text) for each in row[1:]]
            rows.append(row)
        return 20 * torch.tensor(rows)

    subject.predictor.logits = logits
    monkeypatch.setattr(Subject, "temperature", calibrated)
    examples = [Example(0, ("first second",), "a")]
    [record] = Tempered(1, None, Limits(1.0)).run(subject, examples)
    assert record["correct"] != broken
    if broken:
        assert record["texts"] == ["both more"]


def test_the_temperature_calibrates() -> None:
    examples = [Example(i, ("first more near",), "ba"[i % 4 == 0]) for i in range(40)]
    found = [subject_of("ab", scale, examples)[0].temperature for scale in (2.0, 10.0)]
    # Three in four are right where the logits differ by 0.4; the grid's steps are 6%.
    assert found[0] == pytest.approx(0.4 / math.log(3), rel=0.035)
    assert found[1] == pytest.approx(2 / math.log(3), rel=0.035)
    # Where all are right, or none, no temperature calibrates.
    for answer, wanted in (("b", 0.25), ("a", 4.0)):
        alike = [Example(i, ("first more near",), answer) for i in range(8)]
        assert subject_of("ab", 1.0, alike)[0].temperature == wanted


def test_what_becomes_of_an_example_does_not_depend_on_those_beside_it() -> None:
    """Runs are cut into chunks, and may be resumed: the temperature is that of all attacked."""
    target = Example(0, ("first second",), "a")
    mates = [Example(1 + i, ("x",), "abc"[i % 3]) for i in range(6)]  # "a" is what it answers
    chunks = ([target], [target, *mates[::3]], [target, *mates[1::3], *mates[2::3]])
    found, temperatures = [], set()
    for chunk in chunks:
        subject, _ = subject_of("abc", 8.0, [target, *mates])
        [record, *_] = Tempered(1, None, Limits(1.0)).run(subject, chunk)
        found.append(record)
        temperatures.add(subject.temperature)
    assert found[1:] == found[:1] * 2
    [temperature] = temperatures
    assert 0.25 < temperature <= 4


def test_a_run_calibrates_on_all_that_is_attacked(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []

    def temperature(self: Subject) -> float:
        noted.append(len(self._attacked))
        return 1.0

    monkeypatch.setattr(Subject, "temperature", property(temperature))
    monkeypatch.setattr("alum_fairseq.robustness.runner.CHUNK", 4)
    measure(parts=["greedy"])
    assert set(noted) == {8}


def test_reports_are_compared(
    measure: Measure, solved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sorted by the worst of the attacks, each with its own numbers and warnings; unlike ones are
    refused."""
    report = measure(parts=["textbugger"]).report
    name = report["models"][0]["name"]
    folders = []
    for better, worst in (("weak", 10.0), ("strong", 60.5), ("middle", 30.0)):
        text = json.dumps(report).replace(json.dumps(name), json.dumps(better))
        changed = json.loads(text)
        changed |= {"warnings": ["of all", f"{better}: of one"], "notes": ["noted"]}
        for one in changed["measures"]:
            if one["key"] == "attacks.worst":
                one["values"][better] |= {"value": worst, "low": worst - 1, "high": worst + 1}
        folders.append(tmp_path / better)
        folders[-1].mkdir()
        (folders[-1] / "report.json").write_text(json.dumps(changed))
    assert command.main(["compare", *map(str, folders)]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["examples", "strong", "middle", "weak"]
    assert rows[-5:] == ["noted", "of all", "weak: of one", "strong: of one", "middle: of one"]
    [worst] = [row for row in rows if row.startswith("All attacks together: Accuracy, worst")]
    assert "8  60.5 [59.5, 61.5]  30.0 [29.0, 31.0]   10.0 [9.0, 11.0]" in worst
    for key in ("Clean: Accuracy", "Calibration error", "TextBugger", "Success", "Queries"):
        assert any(key in row for row in rows), key
    assert any("Calibration error (%) (lower is better)" in row for row in rows)
    # Reports that share a checkpoint have it once; another one of its name is refused.
    assert command.main(["compare", str(folders[0] / "report.json"), str(folders[0])]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["examples", "weak"]
    retrained = json.loads((folders[0] / "report.json").read_text())
    retrained["models"][0]["checkpoints"][0]["sha256"] = "0"
    (tmp_path / "report.json").write_text(json.dumps(retrained))
    assert command.main(["compare", str(folders[0]), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "another model is called weak" in said
    assert "with --path NAME=FILE" in said
    strong = json.loads((folders[1] / "report.json").read_text())
    strong["models"][0]["constant"] = True  # gives one answer to every example
    (tmp_path / "report.json").write_text(json.dumps(strong))
    assert command.main(["compare", str(folders[0]), str(tmp_path), str(folders[2])]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert head.split() == ["examples", "middle", "weak", "strong"]
    # Colours are those of the order given.
    board = joined([folder / "report.json" for folder in folders])
    assert [model["name"] for model in board["models"]] == ["weak", "strong", "middle"]
    assert "The best model stands first: by all attacks together, accuracy, worst" in about(board)
    other = json.loads((folders[1] / "report.json").read_text())
    parts, data, source = other["parts"], other["data"], report["data"]["source"]
    limits = {**parts["textbugger"]["limits"], "max_candidates": 50}
    bugs = {**parts["textbugger"], "limits": limits, "seed": 9}
    for unlike, message in (
        (
            {"parts": {**parts, "textbugger": bugs}},
            "have different settings: seed (9 and 1) of textbugger; "
            "limits.max_candidates (50 and 8) of textbugger",
        ),
        ({"parts": {"clean": {}, "noise": {}}}, "do not both have the parts noise, textbugger"),
        (
            {
                "data": {**data, "sha256": "0", "source": "other.tsv", "attacked": 2},
                "settings": {**other["settings"], "seed": 7},
            },
            "are of different examples: 24 of other.tsv, 2 of them attacked, --seed 7; and "
            f"24 of {source}, 8 of them attacked, --seed 1",
        ),
        (
            {"data": {**data, "tolerance": 0.5}},
            f"24 of {source}, 8 of them attacked, --seed 1, tolerance 0.5; and",
        ),
    ):
        (folders[1] / "report.json").write_text(json.dumps({**other, **unlike}))
        assert command.main(["compare", *map(str, folders)]) == 2
        assert message in capsys.readouterr().err
    moved = {**other, "data": {**data, "source": "the same, elsewhere"}}
    (folders[1] / "report.json").write_text(json.dumps(moved))
    assert command.main(["compare", *map(str, folders)]) == 0
    capsys.readouterr()
    for content, message in (
        ({}, "is no report.json of alum-robustness"),
        ({**other, "format": 1}, "another version of alum-robustness: its format is 1, here it is"),
    ):
        (folders[1] / "report.json").write_text(json.dumps(content))
        assert command.main(["compare", *map(str, folders)]) == 2
        assert message in capsys.readouterr().err


def test_synonyms_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors, output = tmp_path / "vectors.txt", tmp_path / "synonyms.tsv"
    vectors.write_text("film 1 0\nmovie 0.9 0.1\npicture 0.5 0.5\nbad -1 0\n")
    given = ["synonyms", str(vectors), str(output)]
    assert command.main(given) == 0
    assert "3 words, each with its neighbours" in capsys.readouterr().err
    assert output.read_text().splitlines()[0] == "film\tmovie picture"
    assert command.main(given) == 2
    assert f"{output} exists: remove it, or name another file" in capsys.readouterr().err
    output.unlink()
    assert command.main([*given, "--neighbours", "1"]) == 0
    assert output.read_text().splitlines()[0] == "film\tmovie"
    output.unlink()
    assert command.main([*given, "--min-cosine", "0.9"]) == 0
    assert "picture" not in output.read_text()
    assert command.main([*given, "--neighbours", "0"]) == 2
    assert command.main(["synonyms", "none", str(output)]) == 2
