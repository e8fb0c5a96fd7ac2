"""Deprecation warnings that fairseq's own code causes."""

from __future__ import annotations

import warnings

# Chatter of fairseq's start-up and inner loop about its own use of hydra and torch. Nothing that a
# user of fairseq can act on; about 20 lines before the first line of their log.
_CHATTER = (
    # hydra-core 1.2 and later, until fairseq leaves hydra.experimental and names a version_base.
    (UserWarning, r"(?s)\s*hydra\.experimental\.\w+\(\) is no longer experimental"),
    (UserWarning, r"(?s)\s*The version_base parameter is not specified"),
    (UserWarning, r"(?s).*Usage of deprecated keyword in package header '# @package _group_'"),
    (UserWarning, r"(?s)\s*'config' is validated against ConfigStore schema with the same name"),
    (UserWarning, r"(?s)\s*The strict flag in the compose API is deprecated"),
    # torch 2.4 and later, until fairseq calls torch.amp.
    (FutureWarning, r"(?s)`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated"),
    # torch 2.0 and later, on machines without a GPU: fairseq always asks for pinned memory.
    (UserWarning, r"(?s)'pin_memory' argument is set as true but no accelerator is found"),
)


def silence_chatter() -> None:
    """Filter the deprecation warnings that fairseq's own code causes, and no others."""
    for category, message in _CHATTER:
        warnings.filterwarnings("ignore", message, category)
