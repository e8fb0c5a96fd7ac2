"""fairseq's command line shows the options of the criterion and task that were chosen."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from alum_fairseq.compat.ours import is_ours
from alum_fairseq.errors import did_you_mean

_HELP = {"-h", "--help"}


def explain_the_chosen_options() -> None:
    """Let ``--help`` show the options of what was chosen, and a typo the nearest option.

    fairseq 0.12 shows its help before it has read which criterion and task are chosen, so without
    their options; and an option that it does not know after some 160 lines of usage. Only where a
    criterion or task of ours is chosen. And ``fairseq-validate`` says that it needs ``--task``,
    instead of ending in a KeyError. Can go when ``fairseq-train --criterion masked_lm --help``
    shows the criterion's options.
    """
    from fairseq import options

    parse = options.parse_args_and_arch

    def parse_args_and_arch(parser: Any, input_args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if input_args is None else list(input_args)
        given = {word.partition("=")[0] for word in words}
        task = parser._option_string_actions.get("--task")
        if task is not None and task.default is None and not given & {"--task", *_HELP}:
            _fail(parser, "give --task and --criterion, those that the checkpoint was trained with")
        if _chooses_ours(words):
            parser.error = lambda message: _fail(parser, message)
            if _HELP & set(words):
                words = [word for word in words if word not in _HELP]
                if not {"--arch", "-a"} & set(words):  # fairseq needs one
                    words += ["--arch", "roberta"]
                parser.parse_args = lambda _: _show_help(parser)
            input_args = words
        return parse(parser, input_args, *rest, **kwargs)

    options.parse_args_and_arch = parse_args_and_arch


def _chooses_ours(words: Iterable[str]) -> bool:
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    names = {word.rpartition("=")[2] for word in words}
    return any(
        is_ours(registry[name])
        for registry in (CRITERION_REGISTRY, TASK_REGISTRY)
        for name in names & registry.keys()
    )


def _show_help(parser: argparse.ArgumentParser) -> NoReturn:
    """All options, those of ours last, in a group of their own."""
    ours = parser.add_argument_group("options of alum_fairseq")
    for group in parser._action_groups[:-1]:
        mine = [a for a in group._group_actions if a.option_strings and _is_our_option(a)]
        group._group_actions = [a for a in group._group_actions if a not in mine]
        ours._group_actions += mine
    parser.print_help()
    parser.exit()


def _is_our_option(action: argparse.Action) -> bool:
    return action.option_strings[0].startswith("--alum-")


def _fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """One line, with the nearest of the options or choices."""
    parser.exit(2, f"{parser.prog}: error: {with_hint(message, parser)}\n")


def with_hint(message: str, parser: argparse.ArgumentParser) -> str:
    """An error of argparse's, with the nearest option or choice if it is about a name."""
    if unknown := re.match(r"unrecognized arguments: .*?(--[^\s=]+)", message):
        return message + did_you_mean(unknown[1], _options(parser))
    if wrong := re.match(r"(.*invalid choice: '(.*?)') \(choose from (.*)\)", message):
        choices = re.findall(r"[^\s',]+", wrong[3])
        hint = did_you_mean(wrong[2], choices)
        return wrong[1] + hint if hint else message
    return message


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its subcommands, whose unknown options it reports."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(_options, action.choices.values()))
    return found
