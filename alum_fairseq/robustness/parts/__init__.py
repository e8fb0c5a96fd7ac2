"""What is measured, one file for each part. A new one is imported here, or by whoever uses it.

The order is that of their options, and of a run: :mod:`clean` comes first.
"""

from alum_fairseq.robustness.parts import (  # noqa: F401, I001
    clean,
    noise,
    greedy,
    textbugger,
    pwws,
    textfooler,
    bert_attack,
    embeddings,
    smoothness,
    textattack,
    adversarial_set,
)
from alum_fairseq.robustness.parts.part import PARTS, Part, register_part

__all__ = ["PARTS", "Part", "register_part"]
