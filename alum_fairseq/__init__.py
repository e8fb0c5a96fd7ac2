"""ALUM adversarial training (Liu et al. 2020) for RoBERTa, as a plugin for stock fairseq.

Loaded by ``--user-dir alum_fairseq``, it registers criteria and tasks. Without fairseq the
adversary itself can be used with any model: see :mod:`alum_fairseq.adversarial.adversary`.
"""

import warnings

from alum_fairseq import requirements

try:
    requirements.require_fairseq()
    _problem = None
except ImportError as _error:
    requirements.stop_without(_error)
    _problem = _error

from alum_fairseq.adversarial.adversary import Adversary
from alum_fairseq.adversarial.divergences import DIVERGENCES, Divergence
from alum_fairseq.adversarial.presets import PRESETS, Preset
from alum_fairseq.errors import UsageError, show_usage_errors_in_one_line

__all__ = ["DIVERGENCES", "PRESETS", "Adversary", "Divergence", "Preset", "UsageError"]
__version__ = "0.1.0"

if _problem is not None:
    warnings.warn(f"{_problem} Until then, only the adversary can be used, not the plugin.")
else:
    from alum_fairseq import compat

    compat.apply()
    show_usage_errors_in_one_line()
    from alum_fairseq import criterions, models, tasks  # noqa: F401
    from alum_fairseq.data import subwords  # noqa: F401
