"""From characters to tokens and back: nothing is lost, and an answer is a part of its text."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from support.vocabularies import KINDS, make_vocabulary

from alum_fairseq.data.layout import Layout
from alum_fairseq.data.offsets import subwords_of
from alum_fairseq.data.pieces import PieceDataset, PieceEncoder, pieces_of
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.problems import Outputs, PieceOf, SequenceTagging, SpanPrediction
from alum_fairseq.problems.span_prediction import gold_answers, label_of

TEXTS = (
    "the  book  about\tthe island",
    " Caf\u00e9 na\u00efve e\u0301 \U0001f680\U0001f469\u200d\U0001f680 "
    "\u00bd\u2603 \ufb01n\u00a0x ",
    "\u4f60\u597d, \u0645\u0631\u062d\u0628\u0627! 3,141.59\u2026 (it's)",
    "",
    " ",
    "\n\nthe\n",
)


@pytest.fixture(params=KINDS)
def vocabulary(request: pytest.FixtureRequest, tmp_path: Path) -> Vocabulary:
    return Vocabulary.load(make_vocabulary(request.param, tmp_path / request.param))


@pytest.mark.parametrize("text", TEXTS)
def test_every_character_belongs_to_a_subword(vocabulary: Vocabulary, text: str) -> None:
    encoder = vocabulary.encoder()
    found = subwords_of(encoder, text)
    assert [symbol for symbol, _, _ in found] == encoder.encode(text).split()
    begins, ends = ([each[i] for each in found] for i in (1, 2))
    assert begins == sorted(begins)
    assert ends == sorted(ends)
    covered = {i for begin, end in zip(begins, ends, strict=True) for i in range(begin, end)}
    assert all(text[begin:end] == text[begin:end].strip() for _, begin, end in found)
    # WordPiece and SentencePiece drop what stands for nothing (a joiner, an accent of its own).
    lost = {i for i, each in enumerate(text) if not each.isspace()} - covered
    assert {text[i] for i in lost} <= {"\u200d", "\u0301"}
    if vocabulary.bpe in ("gpt2", "none"):
        assert not lost


@pytest.mark.parametrize("text", TEXTS[:3])
@pytest.mark.parametrize("positions", [14, 60])
def test_an_answer_is_a_part_of_its_text(vocabulary: Vocabulary, text: str, positions: int) -> None:
    """Whatever is right, a model that points to its tokens gives it back to the character."""
    problem = SpanPrediction(max_question=3, doc_stride=4, max_answer=60)
    encoder = PieceEncoder(vocabulary, Layout(problem, positions))
    pieces = encoder(("who wrote", text))
    assert all(len(piece) <= positions for piece in pieces)
    for word in re.finditer(r"\S+", text):
        label = label_of([(word[0], word.start())])
        rows = [PieceOf(piece, 0, ("who wrote", text), label) for piece in pieces]
        logits, here = [], 0
        for row in rows:
            target = problem.target(row)
            here += bool(target.any())
            scores = torch.zeros(len(row.piece), 2)
            scores[target[0], 0] = scores[target[1], 1] = 9 if target.any() else 0
            logits.append(scores)
        if not here:  # cut in two by every border of a text in pieces
            assert len(pieces) > 1
            continue
        found = problem.prediction(Outputs(("who wrote", text), pieces, logits)).best[0]
        assert text[found.start : found.end] == found.text
        assert word[0] in found.text
        if vocabulary.bpe == "none":
            assert (found.text, found.start) == (word[0], word.start())


def test_pieces_of_a_long_context_share_tokens_and_lose_none(vocabulary: Vocabulary) -> None:
    text = "the island " * 30
    problem = SpanPrediction(max_question=4, doc_stride=5)
    encoder = PieceEncoder(vocabulary, Layout(problem, 24))
    whole = PieceEncoder(vocabulary, Layout(problem, 500))(("who", text))
    pieces = encoder(("who wrote the book about it", text))
    assert len(whole) == 1
    assert len(pieces) > 2
    room = 24 - len(pieces[0].before) - 1
    joined = pieces[0].body.tolist()
    for before, piece in itertools.pairwise(pieces):
        assert torch.equal(piece.before, pieces[0].before)
        assert before.body[-5:].tolist() == piece.body[:5].tolist()
        joined += piece.body[5:].tolist()
    assert joined == whole[0].body.tolist()
    assert {len(piece.body) for piece in pieces[:-1]} == {room}


def test_a_long_sentence_is_cut_between_words(vocabulary: Vocabulary) -> None:
    words = ["the", "island", "about", "wrote"] * 9
    text, tags = " ".join(words), " ".join(["O", "B-x", "I-x", "O"] * 9)
    problem = SequenceTagging(("O", "B-x", "I-x"))
    pieces = PieceEncoder(vocabulary, Layout(problem, 16))((text,))
    whole = PieceEncoder(vocabulary, Layout(problem, 500))((text,))
    assert len(pieces) > 1 == len(whole)
    assert all(len(piece) <= 16 for piece in pieces)
    assert torch.cat([piece.body for piece in pieces]).tolist() == whole[0].body.tolist()
    found = []
    for piece in pieces:
        assert text[piece.ranges[0, 0] - 1 : piece.ranges[0, 0]] in ("", " ")
        target = problem.target(PieceOf(piece, 0, (text,), tags))
        found += [problem.labels[i] for i in target.tolist() if i >= 0]
    assert " ".join(found) == tags
    logits = [
        torch.nn.functional.one_hot(
            problem.target(PieceOf(piece, 0, (text,), tags)).clamp(min=0), 3
        ).float()
        for piece in pieces
    ]
    said = problem.prediction(Outputs((text,), pieces, logits))
    assert " ".join(said.tags) == tags
    assert list(said.words) == words


def test_a_word_longer_than_the_model_loses_its_end(tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(make_vocabulary("gpt2", tmp_path / "v"))
    problem = SequenceTagging(("O", "B-x"))
    text = "a " + 50 * "z" + " b"
    pieces = PieceEncoder(vocabulary, Layout(problem, 12))((text,))
    assert all(len(piece) <= 12 for piece in pieces)
    rows = [PieceOf(piece, 0, (text,), "O B-x O") for piece in pieces]
    assert sum(int(problem.target(row).ge(0).sum()) for row in rows) == 3


def test_batches(tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(make_vocabulary("words", tmp_path / "v"))
    problem = SpanPrediction()
    encoder = PieceEncoder(vocabulary, Layout(problem, 40))
    examples = [
        (("who wrote it", "she did write the book"), label_of([("the book", 14)])),
        (("when", "there"), label_of([])),
    ]
    data = PieceDataset(list(pieces_of(examples, encoder)), problem, 1, shuffle=False)
    batch = data.collater([data[0], data[1]])
    words = vocabulary.dictionary
    assert words.string(batch["net_input"]["src_tokens"][0]) == (
        "who wrote it she did write the book"
    )
    assert batch["net_input"]["src_tokens"][0, [0, 4, 5, -1]].tolist() == [0, 2, 2, 2]
    assert batch["target"].tolist() == [[9, 10], [0, 0]]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 12 + 6)
    in_play = problem.logits_of([torch.zeros(2, 12, 2)], batch).eq(0)
    assert in_play[:, 0].tolist() == in_play[:, 1].tolist()
    assert in_play[0, 0].nonzero().flatten().tolist() == [0, 6, 7, 8, 9, 10]
    assert in_play[1, 0].nonzero().flatten().tolist() == [0, 4]


@pytest.mark.parametrize("separator", [2, None])
def test_the_question_is_out_of_play(tmp_path: Path, separator: int | None) -> None:
    vocabulary = Vocabulary.load(make_vocabulary("words", tmp_path / "v"))
    problem = SpanPrediction()
    encoder = PieceEncoder(vocabulary, Layout(problem, 40, separator_token=separator))
    (piece,) = encoder(("who wrote it", "she did"))
    sample = {"net_input": {"src_tokens": piece.tokens.unsqueeze(0)}}
    in_play = problem.logits_of([torch.zeros(1, len(piece), 2)], sample)[0, 0].eq(0)
    assert in_play.nonzero().flatten().tolist() == [0, piece.first, piece.first + 1]


def test_too_few_positions(tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(make_vocabulary("words", tmp_path / "v"))
    with pytest.raises(UsageError, match="--max-positions is 7: it must be 8 or more"):
        PieceEncoder(vocabulary, Layout(SpanPrediction(), 7))


def test_labels() -> None:
    answers = [("caf\u00e9 \u2603", 3), ("x", 0)]
    assert gold_answers(label_of(answers)) == answers
    assert gold_answers(label_of([])) == []
    for wrong in (
        "",
        "[]",
        "{}",
        '{"text": ["a"], "answer_start": []}',
        '{"text": [1], "answer_start": [1]}',
    ):
        with pytest.raises(UsageError, match="two lists, text and answer_start"):
            gold_answers(wrong)
