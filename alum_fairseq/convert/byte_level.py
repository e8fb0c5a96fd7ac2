"""GPT-2's byte-level BPE: how it numbers its tokens."""

from __future__ import annotations

from collections.abc import Container, Iterable

from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

END_OF_TEXT = "<|endoftext|>"


def bpe_numbers(merges: Iterable[tuple[str, ...]], others: Container[str] = ()) -> dict[str, int]:
    """The numbers of ``encoder.json``: bytes, then what each merge makes, then the end of text.

    Args:
        merges: in the order in which they are applied.
        others: tokens that there are besides; only the end of text gets a number.
    """
    tokens = [*bytes_to_unicode().values(), *("".join(merge) for merge in merges)]
    if END_OF_TEXT in others:
        tokens.append(END_OF_TEXT)
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}
