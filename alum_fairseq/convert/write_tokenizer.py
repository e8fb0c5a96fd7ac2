"""From fairseq's vocabulary to a ``tokenizer.json`` that gives fairseq's ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from alum_fairseq.convert.folder import read_json, write_json
from alum_fairseq.convert.read_tokenizer import SPECIAL_NAMES, TOKEN_SETTINGS, read_sentencepiece
from alum_fairseq.data.subwords import SPECIAL_TOKENS, gpt2_encoder
from alum_fairseq.data.vocabulary import Vocabulary
from alum_fairseq.errors import UsageError, one_line


class TokenIds:
    """Ids for the tokens of a tokenizer: fairseq's, and new ones after them.

    fairseq reads a token that ``dict.txt`` lacks as ``<unk>``. A tokenizer has no such step:
    without an id of its own for each token it would split text differently. So such a token gets an
    id after fairseq's last, and the model a row for it that is a copy of the row of ``<unk>``.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self.symbols = [*dictionary.symbols]
        if "<mask>" not in dictionary:  # its tasks add it
            self.symbols.append("<mask>")
        self._known = {symbol: i for i, symbol in enumerate(self.symbols)}
        # A dict.txt may overwrite these words (CamemBERT's does); fairseq goes by the numbers.
        self._known |= {
            dictionary.bos_word: dictionary.bos(),
            dictionary.pad_word: dictionary.pad(),
            dictionary.eos_word: dictionary.eos(),
            dictionary.unk_word: dictionary.unk(),
        }
        self._new = count(len(self.symbols))
        self.unknowns = 0
        self._used: set[int] = set()

    def __call__(self, symbol: str) -> int:
        """The id of a token."""
        if symbol in self._known:
            self._used.add(self._known[symbol])
            return self._known[symbol]
        self.unknowns += 1
        return next(self._new)

    def unused(self, taken: Iterable[str]) -> dict[str, int]:
        """The ids that no token has so far, each by its symbol, or a made-up name if taken."""
        taken = set(taken)
        rest = {}
        for i, symbol in enumerate(self.symbols):
            if i not in self._used:
                usual = symbol not in taken and self._known[symbol] == i
                rest[symbol if usual else f"<symbol {i}>"] = i
        return rest


def make_tokenizer(
    vocabulary: Vocabulary, first: int | None, separator: int | None
) -> tuple[Tokenizer, int]:
    """A tokenizer that splits text as fairseq does, and gives fairseq's ids.

    Args:
        vocabulary: that of the model.
        first: the index of what fairseq's task puts before the first text, or None.
        separator: of what it puts between ``</s>`` and a second text, or None.

    Returns:
        The tokenizer, and the number of its tokens that fairseq reads as ``<unk>``: their ids come
        after fairseq's last.

    Raises:
        UsageError: the files are broken, or tokenizers has no such algorithm.
    """
    ids, end = TokenIds(vocabulary.dictionary), vocabulary.dictionary.eos()
    make = {
        "gpt2": _byte_level,
        "sentencepiece": _sentencepiece,
        "alum_tokenizers": _remapped,
        "none": _words,
    }[vocabulary.bpe]
    try:
        tokenizer = make(vocabulary, ids)
    except UsageError:
        raise
    except Exception as error:  # the library raises nothing more specific
        names = ", ".join(str(file) for file in vocabulary.files)
        raise UsageError(
            f"{names} cannot be converted to a tokenizer.json: {one_line(error)}"
        ) from None
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in SPECIAL_TOKENS]
    )
    names = {i: tokenizer.id_to_token(i) for i in (first, separator, end) if i is not None}
    before, between = ([] if i is None else [names[i]] for i in (first, separator))
    single = [*before, "$A", names[end]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *between, "$B", names[end]],
        special_tokens=[(name, i) for i, name in names.items()],
    )
    return tokenizer, ids.unknowns


def _words(vocabulary: Vocabulary, ids: TokenIds) -> Tokenizer:
    tokens = {word: ids(word) for word in ids.symbols}
    tokens |= ids.unused(tokens)
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


# ------------------------------------------------------------------------------------- byte level


def _byte_level(vocabulary: Vocabulary, ids: TokenIds) -> Tokenizer:
    encoder, merges_file = (vocabulary.folder / name for name in ("encoder.json", "vocab.bpe"))
    numbers = read_json(encoder)
    lines = merges_file.read_text(encoding="utf-8").split("\n")[1:-1]  # as fairseq reads it
    merges = [tuple(line.split()) for line in lines]
    # Tokens that no merge makes, such as the end of text, never result from text.
    tokens = {token: ids(str(numbers[token])) for token in gpt2_encoder(merges)}
    rest = {n: token for token, n in numbers.items() if token not in tokens}
    for symbol in ids.symbols:
        if symbol.isdigit() and int(symbol) in rest:
            tokens[rest[int(symbol)]] = ids(symbol)
    tokens |= ids.unused(tokens)
    tokenizer = Tokenizer(models.BPE(tokens, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# ---------------------------------------------------------------------------------- sentencepiece


def _sentencepiece(vocabulary: Vocabulary, ids: TokenIds) -> Tokenizer:
    path = vocabulary.files[1]
    model = read_sentencepiece(path)
    training, normalization = model.trainer_spec, model.normalizer_spec
    make = {training.UNIGRAM: _unigram, training.BPE: _merges}.get(training.model_type)
    if make is None or training.treat_whitespace_as_suffix:
        raise UsageError(
            f"{path} is a model that tokenizers cannot represent: only unigram and BPE models "
            "with whitespace before words can be converted"
        )
    pieces = [  # that text is split into: not <s>, <unk> and the like
        piece
        for piece in model.pieces
        if piece.type in (piece.NORMAL, piece.USER_DEFINED, piece.BYTE)
    ]
    tokenizer = Tokenizer(make(pieces, ids, training.byte_fallback))
    steps: list[normalizers.Normalizer] = []
    if normalization.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalization.precompiled_charsmap))
    if normalization.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if normalization.add_dummy_prefix else "never"
    # Not split at spaces: some models have pieces with spaces inside.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    users = [piece.piece for piece in pieces if piece.type == piece.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in users])
    return tokenizer


def _unigram(pieces: list[Any], ids: TokenIds, byte_fallback: bool) -> models.Unigram:
    tokens = {ids(piece.piece): (piece.piece, piece.score) for piece in pieces}
    rest = ids.unused(piece.piece for piece in pieces)
    least = min(piece.score for piece in pieces)
    # The others are characters that the model does not know, but that fairseq-preprocess counted.
    # An unknown character scores 10 below the rarest piece, and so do they.
    tokens |= {i: (name, least - 10 * (len(name) == 1)) for name, i in rest.items()}
    in_order = [tokens[i] for i in range(len(tokens))]
    return models.Unigram(in_order, unk_id=ids("<unk>"), byte_fallback=byte_fallback)


def _merges(pieces: list[Any], ids: TokenIds, byte_fallback: bool) -> models.BPE:
    """Every way to merge two pieces into a third, best score first, as SentencePiece merges."""
    tokens = {piece.piece: ids(piece.piece) for piece in pieces}
    tokens |= ids.unused(tokens)
    by_score = [piece.piece for piece in sorted(pieces, key=lambda piece: -piece.score)]
    merges = [
        (text[:i], text[i:])
        for text in by_score
        for i in range(1, len(text))
        if text[:i] in tokens and text[i:] in tokens
    ]
    return models.BPE(tokens, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)


# --------------------------------------------------------------------------- another tokenizer.json


def _remapped(vocabulary: Vocabulary, ids: TokenIds) -> Tokenizer:
    """The same tokenizer, with fairseq's ids and special tokens in place of its own."""
    content = json.loads(Tokenizer.from_file(str(vocabulary.files[1])).to_str())
    model, known = content["model"], set(ids.symbols)
    own = {t["content"] for t in content["added_tokens"] if t["special"]} - known
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:
        unknown = model["vocab"][model["unk_id"]][0]
    own.add(unknown)
    vocab = dict(model["vocab"])  # pairs of token and score in Unigram, else ids by token
    kept = {token: value for token, value in vocab.items() if token not in own - known}
    added = [t for t in content["added_tokens"] if t["content"] not in own.union(SPECIAL_TOKENS)]
    numbers = {token: ids(token) for token in kept}
    numbers |= {t["content"]: ids(t["content"]) for t in added if t["content"] not in numbers}
    numbers |= ids.unused(numbers)
    if isinstance(model["vocab"], dict):
        model["vocab"] = numbers
        model["unk_token"] = "<unk>"
    else:
        least = min(kept.values())
        by_id = {i: [token, kept.get(token, least)] for token, i in numbers.items()}
        model["vocab"] = [by_id[i] for i in range(len(by_id))]
        model["unk_id"] = ids("<unk>")
    content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens(
        [AddedToken(t["content"], **{name: t[name] for name in TOKEN_SETTINGS}) for t in added]
    )
    return tokenizer


# ------------------------------------------------------------------------------------------- files


def write_tokenizer(
    tokenizer: Tokenizer, vocabulary: Vocabulary, max_positions: int, folder: Path
) -> None:
    """Write what ``AutoTokenizer`` reads, and what ``from-hf`` needs to convert it back."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict(zip(SPECIAL_NAMES, SPECIAL_TOKENS, strict=True))
    special |= {"bos_token": special["cls_token"], "eos_token": special["sep_token"]}
    settings = {
        # Loads tokenizer.json as it is; the classes of particular models rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings | special)
    write_json(folder / "special_tokens_map.json", special)
    if vocabulary.bpe == "gpt2":
        tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    if vocabulary.bpe == "sentencepiece":
        (folder / "sentencepiece.bpe.model").write_bytes(vocabulary.files[1].read_bytes())
