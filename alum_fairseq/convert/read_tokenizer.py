"""From a folder's tokenizer to fairseq's vocabulary: ``dict.txt`` and the files of its BPE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer
from tokenizers.implementations import BaseTokenizer

from alum_fairseq.convert.folder import read_optional_json
from alum_fairseq.data.subwords import SPECIAL_TOKENS, gpt2_encoder
from alum_fairseq.errors import UsageError, one_line
from alum_fairseq.files import reporting_access_errors

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "sentencepiece.bpe.model"

# transformers' names of the special tokens that fairseq has, in fairseq's order.
SPECIAL_NAMES = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
# Whose tokenizers can be made from these files alone: transformers' classes, or what wraps any.
_CLASSES = {
    "vocab.txt": ("Bert", "DistilBert", "Electra", "MPNet"),
    "vocab.json": ("Roberta", "GPT2", "Bart", "Longformer"),
    SENTENCEPIECE: ("XLMRoberta", "Camembert"),
}
_ANY_CLASS = (None, "PreTrained", "TokenizersBackend")
# How an added token is found in text.
TOKEN_SETTINGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_BERT_TOKENS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


@dataclass(frozen=True)
class Subwords:
    """A subword encoder of fairseq.

    Attributes:
        bpe: fairseq's name of it.
        files: contents of the files that it needs, by name.
        numbers: for tokens whose symbols in fairseq are numbers, these; empty for other encoders.
    """

    bpe: str
    files: dict[str, bytes]
    numbers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceTokenizer:
    """A tokenizer of transformers, and the encoders of fairseq that may split text as it does.

    Attributes:
        ids: of the tokens.
        special: ids of ``<s>``, ``<pad>``, ``</s>``, ``<unk>``, ``<mask>``, in this order.
        encoders: one or more; fairseq's own comes first.
        loaded: the tokenizer itself; None if there is a SentencePiece model alone.
    """

    ids: dict[str, int]
    special: tuple[int, ...]
    encoders: list[Subwords]
    loaded: Tokenizer | None = None


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> SourceTokenizer:
    """Read the tokenizer of a folder with a ``config.json``, which is given.

    Raises:
        UsageError: fairseq can use none that is there.
    """
    model_type = config["model_type"]
    settings = read_optional_json(folder / "special_tokens_map.json")
    settings = settings | read_optional_json(folder / "tokenizer_config.json")
    defaults = _BERT_TOKENS if model_type == "bert" else SPECIAL_TOKENS
    pairs = zip(SPECIAL_NAMES, defaults, strict=True)
    given = [settings.get(name) or default for name, default in pairs]
    # transformers writes a token's text alone, or with its settings.
    tokens = tuple(t["content"] if isinstance(t, dict) and "content" in t else t for t in given)
    loaded, source = _load(folder, tokens, settings)
    _check_class(source, config | settings)
    if loaded is None:
        ids = _xlmr_ids(source, model_type)
        others = _added_tokens(folder, settings).keys() - ids.keys()
        if others:
            raise UsageError(
                f"{folder} adds {min(others)!r} to {source.name}, which cannot produce it: load "
                f"the tokenizer with AutoTokenizer, and save it, for its {TOKENIZER}"
            )
        special = _special_ids(ids, SPECIAL_TOKENS, source)
        return SourceTokenizer(ids, special, [_sentencepiece(source)])
    ids = loaded.get_vocab(with_added_tokens=True)
    model = folder / SENTENCEPIECE
    special = _special_ids(ids, tokens, model if model.is_file() else source)
    content = json.loads(loaded.to_str())
    kept = source.read_bytes() if source.name == TOKENIZER else loaded.to_str().encode()
    encoders = [Subwords("alum_tokenizers", {TOKENIZER: kept})]
    if model.is_file():
        encoders.insert(0, _sentencepiece(model))
    elif _is_gpt2(content):
        encoders.insert(0, _gpt2(content["model"]["merges"], ids))
    loaded.no_truncation()
    loaded.no_padding()
    return SourceTokenizer(ids, special, encoders, loaded)


def _load(
    folder: Path, tokens: tuple[Any, ...], settings: Mapping[str, Any]
) -> tuple[Tokenizer | None, Path]:
    """The tokenizer, and the file that it was read from; None if that is a SentencePiece model."""
    path = folder / TOKENIZER
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path)), path
        path = folder / "vocab.txt"
        if path.is_file():
            words = BertWordPieceTokenizer.from_file(
                str(path),
                **dict(zip(SPECIAL_NAMES, tokens, strict=True)),
                handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
                strip_accents=settings.get("strip_accents"),
                lowercase=settings.get("do_lower_case", True),
            )
            return _with_added(words, folder, settings), path
        path, merges = folder / "vocab.json", folder / "merges.txt"
        if path.is_file() and merges.is_file():
            space = settings.get("add_prefix_space", False)
            loaded = ByteLevelBPETokenizer.from_file(str(path), str(merges), add_prefix_space=space)
            loaded.add_special_tokens([t for t in tokens if loaded.token_to_id(t) is not None])
            return _with_added(loaded, folder, settings), path
    except UsageError:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise UsageError(f"{path} is not a tokenizer: {one_line(error)}") from None
    if (folder / SENTENCEPIECE).is_file():
        return None, folder / SENTENCEPIECE
    raise UsageError(
        f"{folder} has no tokenizer: none of {TOKENIZER}, vocab.txt, vocab.json with merges.txt, "
        f"{SENTENCEPIECE}"
    )


def _check_class(source: Path, settings: Mapping[str, Any]) -> None:
    """Raise a UsageError if a file is only a part of what a tokenizer is made of."""
    given = settings.get("tokenizer_class")
    name = given and str(given).removesuffix("Fast").removesuffix("Tokenizer")
    whole = settings.get("do_basic_tokenize", True) and not settings.get("never_split")
    if source.name in _CLASSES and not (name in (*_ANY_CLASS, *_CLASSES[source.name]) and whole):
        why = f"tokenizer_class is {given}" if whole else "do_basic_tokenize or never_split is set"
        raise UsageError(
            f"{source} does not hold the whole tokenizer ({why}): load it with AutoTokenizer, and "
            f"save it, if that makes a {TOKENIZER}"
        )


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, tuple[int, Any]]:
    """The ids of the tokens that were added to a vocabulary, and how they are found in text."""
    numbers = read_optional_json(folder / "added_tokens.json")
    added: dict[str, tuple[int, Any]] = {token: (i, {}) for token, i in numbers.items()}
    try:
        for i, entry in (settings.get("added_tokens_decoder") or {}).items():
            added[entry["content"]] = int(i), entry
    except (AttributeError, TypeError, KeyError, ValueError):
        raise UsageError(f"{folder}: its added_tokens_decoder is broken") from None
    return added


def _with_added(loaded: BaseTokenizer, folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer with its added tokens, under their ids."""
    tokenizer = Tokenizer.from_str(loaded.to_str())
    added = _added_tokens(folder, settings)
    for token in sorted(added, key=lambda token: added[token][0]):
        given = {name: added[token][1][name] for name in TOKEN_SETTINGS if name in added[token][1]}
        tokenizer.add_tokens([AddedToken(token, **given)])
    ids = tokenizer.get_vocab()
    for token, (number, _) in added.items():
        if ids[token] != number:
            raise UsageError(
                f"{folder}: the added token {token!r} has the id {number}, but the vocabulary ends "
                f"before {ids[token]}: load the tokenizer with AutoTokenizer, and save it"
            )
    return tokenizer


def _special_ids(ids: Mapping[str, int], tokens: tuple[Any, ...], source: Path) -> tuple[int, ...]:
    for name, token in zip(SPECIAL_NAMES, tokens, strict=True):
        if not isinstance(token, str) or token not in ids:
            raise UsageError(f"{source} has no {token!r}, which is its {name}: fairseq needs it")
    if len(set(tokens)) < len(tokens):
        raise UsageError(f"{source}: {', '.join(SPECIAL_NAMES)} must be five different tokens")
    return tuple(ids[token] for token in tokens)


# ------------------------------------------------------------------------------------- byte level


def _is_gpt2(content: Mapping[str, Any]) -> bool:
    """Whether fairseq's ``--bpe gpt2`` splits text in the same way."""
    model, split = content["model"], content["pre_tokenizer"] or {}
    others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return (
        model["type"] == "BPE"
        and not any(model.get(name) for name in (*others, "ignore_merges"))
        and content["normalizer"] is None
        and split.get("type") == "ByteLevel"
        and not split["add_prefix_space"]
        and split.get("use_regex", True)
    )


def _gpt2(found: list[Any], ids: Mapping[str, int]) -> Subwords:
    """Byte-level BPE, whose symbols in fairseq are the numbers that GPT-2 gives to the tokens."""
    # Older versions of tokenizers write a merge as one text.
    merges = [tuple(each.split(" ") if isinstance(each, str) else each) for each in found]
    encoder = gpt2_encoder(merges, ids)
    symbols = {token: str(number) for token, number in encoder.items()}
    lines = ["#version: 0.2", *map(" ".join, merges)]
    files = {
        "encoder.json": json.dumps(encoder).encode(),  # ASCII: fairseq reads it in the locale's
        "vocab.bpe": "".join(f"{line}\n" for line in lines).encode(),
    }
    return Subwords("gpt2", files, symbols)


# ---------------------------------------------------------------------------------- sentencepiece


def read_sentencepiece(path: Path) -> ModelProto:
    """Read a model: its pieces by id, and how it was trained and normalises text.

    Raises:
        UsageError: the file cannot be read, or is not a SentencePiece model.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # only these models need protobuf

    with reporting_access_errors():
        content = path.read_bytes()
    try:
        SentencePieceProcessor(model_proto=content)  # validates more than the message types do
        model = ModelProto.FromString(content)
    except Exception:  # RuntimeError from sentencepiece, DecodeError from protobuf
        raise UsageError(f"{path} is not a SentencePiece model") from None
    if not all(isinstance(piece.piece, str) for piece in model.pieces):  # bytes if not in UTF-8
        raise UsageError(f"{path} is not a SentencePiece model: a piece is not in UTF-8")
    return model


def _sentencepiece(path: Path) -> Subwords:
    read_sentencepiece(path)  # or it raises
    return Subwords("sentencepiece", {SENTENCEPIECE: path.read_bytes()})


def _xlmr_ids(path: Path, model_type: str) -> dict[str, int]:
    """The ids that XLM-R gives to the pieces of its SentencePiece model: shifted by one."""
    if model_type != "xlm-roberta":
        raise UsageError(
            f"{path.parent} has {path.name} but no {TOKENIZER}, which holds the token ids of a "
            f"{model_type}: load the tokenizer with AutoTokenizer, and save it"
        )
    pieces = [piece.piece for piece in read_sentencepiece(path).pieces]
    if pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise UsageError(f"{path}: its first pieces are {pieces[:3]}, not XLM-R's: <unk> <s> </s>")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"]
    return {token: i for i, token in enumerate(tokens)}


# ------------------------------------------------------------------------------------- dictionary


def symbol_order(tokenizer: SourceTokenizer, rows: int, unknowns: frozenset[int]) -> list[int]:
    """The ids of fairseq's symbols in their order: four special ones, the rest, ``<mask>``.

    Args:
        tokenizer: the tokenizer.
        rows: number of rows of the model's embeddings.
        unknowns: ids that stand for ``<unk>``, of which fairseq needs one row only.

    Raises:
        UsageError: a special token has no row.
    """
    for name, i in zip(SPECIAL_NAMES, tokenizer.special, strict=True):
        if i >= rows:
            raise UsageError(
                f"the {name} is token {i}, and the model has {rows} rows of embeddings"
            )
    *first, mask = tokenizer.special
    taken = {*tokenizer.special, *unknowns}
    return [*first, *(i for i in range(rows) if i not in taken), mask]


def write_dictionary(
    ids: Mapping[str, int], numbers: Mapping[str, str], order: list[int], path: Path
) -> None:
    """Write ``dict.txt``, which lists the symbols of all tokens but the special ones, in order.

    A token's symbol is its number, such as GPT-2's, or else the token itself.

    A symbol of fairseq contains no whitespace and occurs once. A row whose token cannot be a symbol
    gets a made-up name, like those by which fairseq pads a dictionary.
    """
    tokens = {i: token for token, i in ids.items()}
    symbols: list[str | None] = []
    used = set(SPECIAL_TOKENS)
    for i in order[4:-1]:
        token = tokens.get(i, "")
        symbol = numbers.get(token, token)
        # A token whose text is a number must not be taken for one of GPT-2's numbers.
        ambiguous = numbers and token not in numbers and symbol.isdigit()
        usable = symbol.split() == [symbol] and symbol not in used and not ambiguous
        symbols.append(symbol if usable else None)
        if usable:
            used.add(symbol)
    names = (f"madeupword{n:04d}" for n in count())
    free = (name for name in names if name not in used)
    lines = [f"{symbol or next(free)} 1\n" for symbol in symbols]
    path.write_text("".join(lines), encoding="utf-8")
