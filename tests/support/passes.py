"""What the ways of training cost, in passes."""

from __future__ import annotations

# Of each mode: how often it goes forward, down to the inputs and down to the weights. Attention's
# two operands both need a gradient, so that down to the inputs counts twice for it.
PASSES = {
    "stock": (1, 1, 1),
    "exact": (3, 3, 2),
    "random": (2, 2, 2),
    "low memory": (4, 3, 2),
    "a quarter of the batch": (1.5, 1.5, 1.25),
    "K=2": (4, 4, 2),
    "K=3": (5, 5, 2),
    "vat": (3, 3, 2),
    "r3f": (2, 2, 2),
    "smart": (4, 3, 2),
    "fgm": (2, 2, 2),
    "pgd": (5, 5, 2),
    "freelb": (5, 4, 4),
    "freelb++": (12, 11, 11),
}
