"""From a folder's tokenizer to fairseq's vocabulary: ``dict.txt`` and the files of its subwords."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from alum_fairseq.convert.byte_level import bpe_numbers
from alum_fairseq.convert.folder import read_optional_json
from alum_fairseq.convert.sentencepiece_model import read_sentencepiece, text_pieces
from alum_fairseq.errors import UsageError, one_line

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "sentencepiece.bpe.model"

# The tokens that fairseq has, by the names that transformers gives to their parts, in fairseq's
# order: <s>, <pad>, </s>, <unk>; and <mask>, which comes last.
PARTS = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
_OURS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BERTS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


@dataclass
class Subwords:
    """A tokenizer, as far as fairseq can have it.

    Attributes:
        bpe: fairseq's name of the rule.
        ids: by token, as transformers counts.
        special: ids of ``<s>``, ``<pad>``, ``</s>``, ``<unk>``, ``<mask>``, in this order.
        symbols: what the rule calls a token, where that is not the token itself.
        files: to copy: from where, and under which name.
        texts: to write: name and content.
        notes: what the user should know, a sentence each.
    """

    bpe: str
    ids: dict[str, int]
    special: tuple[int, ...]
    symbols: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the files of the subwords."""
        for name, source in self.files.items():
            shutil.copyfile(source, folder / name)
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def read_subwords(folder: Path, model_type: str) -> Subwords:
    """Find out what kind of tokenizer a folder has, and read it.

    Raises:
        UsageError: it has none, it is broken, or fairseq has no rule for it.
    """
    settings = read_optional_json(folder / "special_tokens_map.json")
    settings = settings | read_optional_json(folder / "tokenizer_config.json")
    tokenizer, source = _load(folder, model_type, settings)
    if tokenizer is None:
        return _sentencepiece(folder, _xlmr_ids(folder / SENTENCEPIECE, model_type), model_type, {})
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if (folder / SENTENCEPIECE).is_file():
        return _sentencepiece(folder, ids, model_type, settings)
    special = _special_ids(ids, settings, model_type, source)
    content = json.loads(tokenizer.to_str())
    if _as_gpt2(content):
        return _byte_level(content, ids, special)
    subwords = Subwords("alum_tokenizers", ids, special)
    if source.name == TOKENIZER:
        subwords.files[TOKENIZER] = source
    else:
        subwords.texts[TOKENIZER] = tokenizer.to_str()
    if content["model"]["type"] == "BPE":
        subwords.notes.append(
            f"{source} is kept as it is, for --bpe alum_tokenizers: --bpe gpt2 would cut text "
            "differently (it has no normalizer, no add_prefix_space, and bytes alone)"
        )
    return subwords


def _load(
    folder: Path, model_type: str, settings: Mapping[str, Any]
) -> tuple[Tokenizer | None, Path]:
    """The tokenizer, and the file that it was read from; None for sentencepiece's own."""
    path = folder / TOKENIZER
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path)), path
        path = folder / "vocab.txt"
        if path.is_file():
            return _wordpiece(path, settings), path
        path = folder / "vocab.json"
        if path.is_file() and (folder / "merges.txt").is_file():
            return _bpe(path, folder / "merges.txt", settings), path
    except UsageError:
        raise
    except Exception as error:  # the library raises nothing finer
        raise UsageError(f"{path} is no tokenizer: {one_line(error)}") from None
    if (folder / SENTENCEPIECE).is_file():
        return None, folder / SENTENCEPIECE
    raise UsageError(
        f"{folder} has no tokenizer: none of {TOKENIZER}, vocab.txt, vocab.json with merges.txt, "
        f"{SENTENCEPIECE}"
    )


def _wordpiece(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """BERT's tokenizer, from its vocabulary and settings."""
    vocabulary = models.WordPiece.read_file(str(path))
    unknown = _text(settings.get("unk_token", "[UNK]"))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(
        [token for token in _special_tokens(settings, _BERTS) if token in vocabulary]
    )
    return tokenizer


def _bpe(path: Path, merges: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """GPT-2's kind of tokenizer, from its vocabulary and merges."""
    vocabulary, pairs = models.BPE.read_file(str(path), str(merges))
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=settings.get("add_prefix_space", False)
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [token for token in _special_tokens(settings, _OURS) if token in vocabulary]
    )
    added = read_optional_json(path.with_name("added_tokens.json"))
    in_order = sorted(added, key=added.__getitem__)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in in_order])
    return tokenizer


def _special_tokens(settings: Mapping[str, Any], defaults: Sequence[str]) -> list[Any]:
    """The five tokens that fairseq has, as the folder names them."""
    return [
        _text(settings.get(part) or default) for part, default in zip(PARTS, defaults, strict=True)
    ]


def _text(token: Any) -> str:
    """A special token: transformers writes its text alone, or with its settings."""
    return token["content"] if isinstance(token, dict) and "content" in token else token


def _special_ids(
    ids: Mapping[str, int], settings: Mapping[str, Any], model_type: str, source: Path
) -> tuple[int, ...]:
    tokens = _special_tokens(settings, _BERTS if model_type == "bert" else _OURS)
    for part, token in zip(PARTS, tokens, strict=True):
        if not isinstance(token, str) or token not in ids:
            raise UsageError(f"{source} has no {token!r}, which is its {part}: fairseq needs it")
    if len(set(tokens)) < len(tokens):
        raise UsageError(f"{source}: {', '.join(PARTS)} must be five different tokens")
    return tuple(ids[token] for token in tokens)


# ------------------------------------------------------------------------------------- byte level


def _as_gpt2(content: Mapping[str, Any]) -> bool:
    """Whether fairseq's ``--bpe gpt2`` cuts text in the same way."""
    model, cut = content["model"], content["pre_tokenizer"] or {}
    return (
        model["type"] == "BPE"
        and not any(
            model.get(name)
            for name in (
                "dropout",
                "continuing_subword_prefix",
                "end_of_word_suffix",
                "byte_fallback",
                "ignore_merges",
            )
        )
        and content["normalizer"] is None
        and cut.get("type") == "ByteLevel"
        and not cut["add_prefix_space"]
        and cut.get("use_regex", True)
    )


def _byte_level(
    content: Mapping[str, Any], ids: dict[str, int], special: tuple[int, ...]
) -> Subwords:
    """fairseq's GPT-2 BPE: numbers for tokens, in the order in which GPT-2 gives them."""
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in content["model"]["merges"]
    ]
    numbers = bpe_numbers(merges, ids)
    subwords = Subwords("gpt2", ids, special)
    subwords.symbols = {token: str(number) for token, number in numbers.items()}
    subwords.texts = {
        "encoder.json": json.dumps(numbers),  # in ASCII: fairseq reads it in the locale's encoding
        "vocab.bpe": "".join(f"{line}\n" for line in ("#version: 0.2", *map(" ".join, merges))),
    }
    missing = sum(token not in ids for token in numbers)
    if missing:
        subwords.notes.append(
            f"{missing} of the 256 bytes have no token: they are <unk> to fairseq, and nothing to "
            "transformers"
        )
    return subwords


# ---------------------------------------------------------------------------------- sentencepiece


def _sentencepiece(
    folder: Path, ids: dict[str, int], model_type: str, settings: Mapping[str, Any]
) -> Subwords:
    path = folder / SENTENCEPIECE
    model = read_sentencepiece(path)
    subwords = Subwords("sentencepiece", ids, _special_ids(ids, settings, model_type, path))
    subwords.files = {SENTENCEPIECE: path}
    lacking = sum(piece.piece not in ids for piece in text_pieces(model))
    if lacking:
        subwords.notes.append(f"{path}: {lacking} of its pieces have no id: they are <unk>")
    return subwords


def _xlmr_ids(path: Path, model_type: str) -> dict[str, int]:
    """The ids that XLM-R gives to the pieces of its sentencepiece model: shifted by one."""
    if model_type != "xlm-roberta":
        raise UsageError(
            f"{path.parent} has {path.name} but no {TOKENIZER}, which says how a {model_type} "
            "counts its tokens: load it with AutoTokenizer, and save it"
        )
    pieces = [piece.piece for piece in read_sentencepiece(path).pieces]
    if pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise UsageError(f"{path}: its first pieces are {pieces[:3]}, not XLM-R's: <unk> <s> </s>")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"]
    return {token: i for i, token in enumerate(tokens)}


# ------------------------------------------------------------------------------------- dictionary


def order_of_symbols(
    subwords: Subwords, rows: int, unknowns: frozenset[int] = frozenset()
) -> list[int]:
    """The id of every symbol, in fairseq's order: four special ones, the rest, ``<mask>``.

    Args:
        subwords: the tokenizer.
        rows: of the model's embeddings.
        unknowns: ids that stand for ``<unk>``; fairseq needs no row for them.

    Raises:
        UsageError: a special token has no row.
    """
    for part, i in zip(PARTS, subwords.special, strict=True):
        if i >= rows:
            raise UsageError(
                f"the {part} is token {i}, and the model has {rows} rows of embeddings"
            )
    *first, mask = subwords.special
    taken = {*subwords.special, *unknowns}
    return [*first, *(i for i in range(rows) if i not in taken), mask]


def write_dictionary(subwords: Subwords, order: list[int], path: Path) -> int:
    """Write ``dict.txt``.

    A symbol of fairseq holds no blank and occurs once. Rows without a token that can be one get a
    made-up name, as fairseq does to fill up a dictionary.

    Returns:
        How many tokens got a made-up name.
    """
    tokens = {i: token for token, i in subwords.ids.items()}
    symbols: list[str | None] = []
    used = set(_OURS)
    for i in order[4:-1]:
        token = tokens.get(i, "")
        symbol = subwords.symbols.get(token, token)
        usable = symbol.split() == [symbol] and symbol not in used
        # A token that happens to be written as one of GPT-2's numbers is none of them.
        usable = usable and not (
            subwords.symbols and token not in subwords.symbols and symbol.isdigit()
        )
        symbols.append(symbol if usable else None)
        used.update([symbol] if usable else [])
    names = (f"madeupword{n:04d}" for n in range(10**9))
    free = (name for name in names if name not in used)
    lines = [f"{symbol or next(free)} 1\n" for symbol in symbols]
    path.write_text("".join(lines), encoding="utf-8")
    return sum(
        i in tokens for i, symbol in zip(order[4:-1], symbols, strict=True) if symbol is None
    )
