"""Where the plugin and the clone are."""

from __future__ import annotations

from pathlib import Path

import alum_fairseq

PLUGIN = Path(alum_fairseq.__file__).parent
ROOT = Path(__file__).parents[2]
