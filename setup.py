"""Packaging of alum_fairseq.

fairseq and torch are deliberately not among the requirements that pip may install or replace:
fairseq comes under two names (``fairseq``, ``fairseq-fixed``), and its build needs a torch that is
already there. ``scripts/setup.sh`` installs everything in the order that works.
"""

import tempfile
from pathlib import Path

from setuptools import find_packages, setup

# Not in the clone: pip would leave it there, and in it files that are gone from the package.
BUILD = tempfile.TemporaryDirectory()

setup(
    name="alum_fairseq",
    version="0.1.0",
    description="ALUM adversarial training for RoBERTa, as a plugin for stock fairseq",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    options={"build": {"build_base": BUILD.name}},
    python_requires=">=3.11",
    packages=find_packages(include=["alum_*"]),
    package_data={"alum_commands": ["help.json"], "alum_fairseq.robustness.report": ["*.jinja"]},
    entry_points={
        "console_scripts": [
            "alum-convert=alum_commands:convert",
            "alum-predict=alum_commands:predict",
            "alum-prepare=alum_commands:prepare",
            "alum-robustness=alum_commands:robustness",
        ]
    },
    install_requires=[
        "Jinja2>=3.1,<4",
        "matplotlib>=3.8,<4",
        "numpy>=1.21.3",
        "protobuf>=7.36,<8",
        "safetensors>=0.4,<1",
        "scipy>=1.11,<2",
        "sentencepiece>=0.2,<0.3",
        "tokenizers>=0.20,<0.24",
        "tqdm>=4,<5",
    ],
    extras_require={
        "hf": ["accelerate>=1.1,<2", "transformers>=5,<6"],
        "test": [
            "pytest>=8,<10",
            "hypothesis>=6,<7",
            "ruff>=0.12,<0.18",
            "foolbox>=3.3,<4",
            "markdown-it-py>=3,<5",
            "mkdocs-material>=9.5,<10",
            "nltk>=3.9,<4",
            "scikit-learn>=1.3,<2",
            "seqeval>=1.2,<2",
            "torchmetrics>=1.6,<2",
        ],
        "wordnet": ["nltk>=3.9,<4"],
    },
)
