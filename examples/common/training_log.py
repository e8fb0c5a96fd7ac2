"""Reads what fairseq's command-line tools log with ``--log-format json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOGGED = re.compile(r"\| INFO \| (\w+) \| (\{.*\})\s*$")


def logged(log: Path, name: str) -> Iterator[dict[str, Any]]:
    """What fairseq logged as JSON under a name: ``train_inner``, ``valid``, ...

    Of lines about the same update, which an interrupted and resumed training leaves behind, only
    the last.
    """
    found: dict[str, dict[str, Any]] = {}
    if not log.exists():
        return
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LOGGED.search(line)
        if match and match[1] == name:
            stats = json.loads(match[2])
            update = stats.get("num_updates", stats.get(f"{name}_num_updates", "0"))
            found.pop(update, None)
            found[update] = stats
    yield from found.values()
