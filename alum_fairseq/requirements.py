"""Which fairseq and torch are needed, and how to get them."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from pathlib import Path

# Before it, torch runs whatever code stands in a checkpoint, unless each reader says otherwise;
# fairseq's do not.
_LEAST_TORCH = (2, 6)


def require_fairseq() -> None:
    """Import torch and fairseq.

    Raises:
        ImportError: one cannot be imported, or torch is too old; the message says which one to
            install.
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError(f"alum_fairseq needs torch, which is not installed. {_which()}")
    import torch

    torch_version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if torch_version < _LEAST_TORCH:
        raise ImportError(
            f"alum_fairseq needs torch 2.6 or later, and finds {torch.__version__}, which runs the "
            "code that a stranger's checkpoint may hold: pip install 'torch>=2.6'."
        )
    # It says at every import that tensorboardX is not there, which nothing of ours needs.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    try:
        import fairseq  # noqa: F401
    except Exception as error:  # Python 3.11+: fairseq 0.12.2 fails with a ValueError
        if importlib.util.find_spec("fairseq") is None:
            problem = "is not installed"
        else:
            problem = f"cannot be imported ({type(error).__name__}: {error})"
        raise ImportError(f"alum_fairseq needs fairseq, which {problem}. {_which()}") from error


def stop_without(error: ImportError) -> None:
    """End an ``alum-*`` command with the error's message alone; without torch, raise it.

    With torch, but without fairseq, the adversary can be used.
    """
    program = Path(sys.argv[0]).name
    if program.startswith("alum-"):
        sys.exit(f"{program}: error: {error}")
    if importlib.util.find_spec("torch") is None:
        raise error


def _which() -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info >= (3, 11):
        return (
            f"For Python {version} install fairseq-fixed 0.12.3.1 (fairseq 0.12.2 cannot be "
            "imported on 3.11 and later): 'bash scripts/setup.sh' in a clone of this project, or "
            "'pip install torch numpy cython setuptools wheel' and then "
            "'pip install --no-build-isolation fairseq-fixed==0.12.3.1'."
        )
    return (
        f"For Python {version} install fairseq 0.12.2: 'pip install \"pip<24.1\"' (later ones "
        "refuse its omegaconf) and then 'pip install fairseq==0.12.2'."
    )
