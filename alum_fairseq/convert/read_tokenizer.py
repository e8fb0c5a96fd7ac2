"""From a folder's tokenizer to fairseq's vocabulary: ``dict.txt`` and the files of its BPE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer

from alum_fairseq.convert.folder import read_optional_json
from alum_fairseq.convert.sentencepiece_model import read_sentencepiece, text_pieces
from alum_fairseq.data.subwords import SPECIAL_TOKENS, gpt2_encoder
from alum_fairseq.errors import UsageError, one_line

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "sentencepiece.bpe.model"

# transformers' names of the special tokens that fairseq has, in fairseq's order.
SPECIAL_NAMES = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
_BERT_TOKENS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


@dataclass
class FairseqTokenizer:
    """A tokenizer of transformers, as fairseq can use it.

    Attributes:
        bpe: fairseq's name of the subword algorithm.
        ids: transformers' ids of the tokens.
        special: ids of ``<s>``, ``<pad>``, ``</s>``, ``<unk>``, ``<mask>``, in this order.
        symbols: fairseq's symbols for tokens, where they differ from the tokens.
        files: contents of the files that ``bpe`` needs, by name.
        notes: sentences for the user.
    """

    bpe: str
    ids: dict[str, int]
    special: tuple[int, ...]
    symbols: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_tokenizer(folder: Path, model_type: str) -> FairseqTokenizer:
    """Read a folder's tokenizer; a UsageError if fairseq can use none that is there."""
    settings = read_optional_json(folder / "special_tokens_map.json")
    settings = settings | read_optional_json(folder / "tokenizer_config.json")
    defaults = _BERT_TOKENS if model_type == "bert" else SPECIAL_TOKENS
    pairs = zip(SPECIAL_NAMES, defaults, strict=True)
    given = [settings.get(name) or default for name, default in pairs]
    # transformers writes a token's text alone, or with its settings.
    tokens = tuple(t["content"] if isinstance(t, dict) and "content" in t else t for t in given)
    loaded, source = _load(folder, tokens, settings)
    if loaded is None:
        ids = _xlmr_ids(source, model_type)
        return _sentencepiece(source, ids, _special_ids(ids, SPECIAL_TOKENS, source))
    ids = loaded.get_vocab(with_added_tokens=True)
    model = folder / SENTENCEPIECE
    if model.is_file():
        return _sentencepiece(model, ids, _special_ids(ids, tokens, model))
    special = _special_ids(ids, tokens, source)
    content = json.loads(loaded.to_str())
    if _is_gpt2(content):
        return _gpt2(content, ids, special)
    kept = source.read_bytes() if source.name == TOKENIZER else loaded.to_str().encode()
    tokenizer = FairseqTokenizer("alum_tokenizers", ids, special, files={TOKENIZER: kept})
    if content["model"]["type"] == "BPE":
        tokenizer.notes.append(
            f"{source} is kept as it is, for --bpe alum_tokenizers: --bpe gpt2 would split text "
            "differently (it has no normalizer, no add_prefix_space, and only bytes as characters)"
        )
    return tokenizer


def _load(
    folder: Path, tokens: tuple[Any, ...], settings: Mapping[str, Any]
) -> tuple[Tokenizer | BertWordPieceTokenizer | ByteLevelBPETokenizer | None, Path]:
    """The tokenizer, and the file that it was read from; None if that is a SentencePiece model."""
    path = folder / TOKENIZER
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path)), path
        path = folder / "vocab.txt"
        if path.is_file():
            return BertWordPieceTokenizer.from_file(
                str(path),
                **dict(zip(SPECIAL_NAMES, tokens, strict=True)),
                handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
                strip_accents=settings.get("strip_accents"),
                lowercase=settings.get("do_lower_case", True),
            ), path
        path, merges = folder / "vocab.json", folder / "merges.txt"
        if path.is_file() and merges.is_file():
            space = settings.get("add_prefix_space", False)
            loaded = ByteLevelBPETokenizer.from_file(str(path), str(merges), add_prefix_space=space)
            loaded.add_special_tokens([t for t in tokens if loaded.token_to_id(t) is not None])
            added = read_optional_json(folder / "added_tokens.json")
            in_order = sorted(added, key=added.__getitem__)
            loaded.add_tokens([AddedToken(token, normalized=False) for token in in_order])
            return loaded, path
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


def _gpt2(
    content: Mapping[str, Any], ids: dict[str, int], special: tuple[int, ...]
) -> FairseqTokenizer:
    """Byte-level BPE, whose symbols in fairseq are the numbers that GPT-2 gives to the tokens."""
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in content["model"]["merges"]
    ]
    encoder = gpt2_encoder(merges, ids)
    symbols = {token: str(number) for token, number in encoder.items()}
    lines = ["#version: 0.2", *map(" ".join, merges)]
    files = {
        "encoder.json": json.dumps(encoder).encode(),  # ASCII: fairseq reads it in the locale's
        "vocab.bpe": "".join(f"{line}\n" for line in lines).encode(),
    }
    tokenizer = FairseqTokenizer("gpt2", ids, special, symbols, files)
    missing = sum(token not in ids for token in encoder)
    if missing:
        tokenizer.notes.append(
            f"{missing} of the 256 bytes have no token: fairseq reads them as <unk>, transformers "
            "leaves them out"
        )
    return tokenizer


# ---------------------------------------------------------------------------------- sentencepiece


def _sentencepiece(path: Path, ids: dict[str, int], special: tuple[int, ...]) -> FairseqTokenizer:
    missing = sum(piece.piece not in ids for piece in text_pieces(read_sentencepiece(path)))
    notes = [f"{path}: {missing} of its pieces have no id: they are <unk>"] if missing else []
    files = {SENTENCEPIECE: path.read_bytes()}
    return FairseqTokenizer("sentencepiece", ids, special, files=files, notes=notes)


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


def symbol_order(
    tokenizer: FairseqTokenizer, rows: int, unknowns: frozenset[int] = frozenset()
) -> list[int]:
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


def write_dictionary(tokenizer: FairseqTokenizer, order: list[int], path: Path) -> int:
    """Write ``dict.txt``.

    A symbol of fairseq contains no whitespace and occurs once. A row whose token cannot be a symbol
    gets a made-up name, like those by which fairseq pads a dictionary.

    Returns:
        The number of tokens that got a made-up name.
    """
    tokens = {i: token for token, i in tokenizer.ids.items()}
    symbols: dict[int, str | None] = {}
    used = set(SPECIAL_TOKENS)
    for i in order[4:-1]:
        token = tokens.get(i, "")
        symbol = tokenizer.symbols.get(token, token)
        # A token whose text is a number must not be taken for one of GPT-2's numbers.
        ambiguous = tokenizer.symbols and token not in tokenizer.symbols and symbol.isdigit()
        usable = symbol.split() == [symbol] and symbol not in used and not ambiguous
        symbols[i] = symbol if usable else None
        used.update([symbol] if usable else [])
    names = (f"madeupword{n:04d}" for n in count())
    free = (name for name in names if name not in used)
    lines = [f"{symbol or next(free)} 1\n" for symbol in symbols.values()]
    path.write_text("".join(lines), encoding="utf-8")
    return sum(i in tokens for i, symbol in symbols.items() if symbol is None)
