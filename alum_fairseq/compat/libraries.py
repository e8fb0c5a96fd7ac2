"""What later versions of numpy and torch took away from fairseq."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch


def restore_numpy_long() -> None:
    """Give numpy back ``np.compat.long``, which ``--sample-break-mode eos`` asks for.

    numpy 2.0 and later have no ``np.compat``. Can go when fairseq says ``int``.
    """
    if not hasattr(np, "compat"):
        np.compat = SimpleNamespace(long=int)


def find_nan_in_dictionaries() -> None:
    """Let fairseq say in which module numbers went wrong, before it stops over them.

    To look at gradients it hooks all modules in a way that torch refuses to modules that return
    dictionaries without a tensor, such as RoBERTa's encoder: what the user saw was a bare
    ``StopIteration``. The innermost modules, which return tensors, are enough. Can go when
    fairseq 0.12's NanDetector uses full backward hooks.
    """
    from fairseq.nan_detector import NanDetector

    def add_hooks(self: NanDetector, module: torch.nn.Module) -> None:
        if self.forward:
            self.fhooks.append(module.register_forward_hook(self.fhook_fn))
        if self.backward and not any(module.children()):
            self.bhooks.append(module.register_backward_hook(self.bhook_fn))

    NanDetector.add_hooks = add_hooks
