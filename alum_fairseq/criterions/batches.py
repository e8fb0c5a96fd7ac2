"""A part of one of fairseq's batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


def split_rows(batch: Batch, rows: Tensor) -> tuple[Batch, Batch]:
    """Cut a batch in two: these rows, and all others.

    Args:
        batch: as a fairseq task makes it for sentences: ``id``, ``target`` and ``net_input...``
            have a row for each, ``nsentences`` and ``ntokens`` count them; all else has no rows.
        rows: numbers of rows, each once, on any device.

    Returns:
        The rows asked for, and the rest; their counts add up to those of the batch.
    """
    size = batch["nsentences"]
    rest = torch.ones(size, dtype=torch.bool)
    rest[rows.cpu()] = False
    part, others = _take(batch, rows), _take(batch, rest.nonzero().flatten())
    part |= {"nsentences": len(rows), "ntokens": _tokens(part, batch, len(rows))}
    for count in ("nsentences", "ntokens"):
        others[count] = batch[count] - part[count]
    return part, others


def _take(batch: Batch, rows: Tensor) -> Batch:
    return {key: _rows_of(value, rows) if _has_rows(key) else value for key, value in batch.items()}


def _has_rows(key: str) -> bool:
    """Whether what fairseq's batches have under this key has a row for each sentence."""
    return key in ("id", "target") or key.startswith("net_input")


def _rows_of(value: Any, rows: Tensor) -> Any:
    if isinstance(value, dict):
        return {name: _rows_of(entry, rows) for name, entry in value.items()}
    if isinstance(value, Tensor):
        return value[rows.to(value.device, non_blocking=True)]
    return value


def _tokens(part: Batch, batch: Batch, sentences: int) -> int:
    """How many of the batch's tokens are in the part: in proportion, so that no GPU is asked."""
    return batch["ntokens"] * sentences // batch["nsentences"]


def merge_logs(logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The logging outputs of parts of a batch as those of the whole: sums of numbers."""
    keys = dict.fromkeys(key for log in logs for key in log)
    return {key: sum(log[key] for log in logs if key in log) for key in keys}
