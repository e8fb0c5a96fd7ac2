"""``alum-convert``: Hugging Face folders to fairseq checkpoints, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from alum_fairseq import cli
from alum_fairseq.checkpoints.checkpoint import Checkpoint
from alum_fairseq.convert import from_hf, to_hf
from alum_fairseq.files import new_folder

_DESCRIPTION = "Convert models between Hugging Face's transformers and fairseq."
_FROM = """From a folder of transformers (RoBERTa or BERT family) to a checkpoint of fairseq.

The result is model.pt, dict.txt and the files of the subwords: fairseq-train starts from it
(--finetune-from-model, --restore-file), RobertaModel.from_pretrained loads it, and
alum-prepare --vocabulary takes it."""
_TO = """From a checkpoint of fairseq's RoBERTa to a folder of transformers.

Masked LMs, classifiers and regressions; AutoModelForMaskedLM or AutoModelForSequenceClassification
and AutoTokenizer load the result. Labels have the names that the data give them."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return cli.run(_main, argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("alum-convert", _DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = cli.add_command(commands, "from-hf", _FROM)
    command.add_argument("source", metavar="HF_FOLDER", type=Path, help="holds config.json")
    command.add_argument("target", metavar="OUTPUT_FOLDER", type=Path, help="a new folder")
    command = cli.add_command(commands, "to-hf", _TO)
    command.add_argument("source", metavar="CHECKPOINT", type=Path, help="such as model.pt")
    command.add_argument("target", metavar="OUTPUT_FOLDER", type=Path, help="a new folder")
    command.add_argument(
        "--data",
        type=Path,
        help="the data that it was trained on, for labels and vocabulary (default: where they "
        "were when it was trained, or beside the checkpoint)",
    )
    command.add_argument(
        "--vocabulary",
        metavar="DIR",
        type=Path,
        help="the folder of dict.txt and the files of its subword encoder (default: the data's)",
    )
    command.add_argument(
        "--head", metavar="NAME", help="the classification head, if it has several"
    )
    return parser


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    new_folder(options.target)
    if options.command == "from-hf":
        notes, steps = from_hf.convert(options.source, options.target)
    else:
        checkpoint = Checkpoint(options.source, options.data, options.vocabulary, options.head)
        notes, steps = to_hf.convert(checkpoint, options.target)
    for note in notes:
        cli.say(note)
    cli.say(f"{options.target} is complete.\n{steps}")
