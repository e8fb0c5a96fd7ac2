"""Renews what is made from the code.

    python scripts/docs.py

Of the manual all of `options.md`, `tutorial.ipynb` from `tutorial.md`, the classes in `api.md`,
the messages in `troubleshooting.md`, and the files in `choices.md`; and what `alum-* --help` shows.
A test says when one of them is out of date.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import enum
import importlib
import inspect
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))  # not the installed copy
MADE = "<!-- Made by `python scripts/docs.py` from here on: change the code, not this page. -->"


def begins(name: str) -> str:
    """What a page has before the part that is made."""
    return (DOCS / name).read_text(encoding="utf-8").partition(MADE)[0]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in lines]


# options.md

# Options that fairseq has no words for.
WITHOUT_HELP = {
    "regression_target": "labels are numbers",
    "report_mcc": "log the Matthews correlation, `mcc`",
    "report_acc_and_f1": "log F1, and the mean of accuracy and F1, `acc_and_f1`; for two classes",
    "report_pearson_and_spearman": "log both correlations, and their mean, "
    "`pearson_and_spearman`; for regression",
    "no_shuffle": "keep the order of the data",
}
COMMANDS = ("prepare", "predict", "robustness", "convert")


def default_and_meaning(text: str) -> tuple[str, str]:
    """A help text in two parts: what stands in `(default: ...)`, and the rest."""
    text = " ".join(text.split())
    found = re.search(r"\s*\(default: ((?:[^()]|\([^()]*\))*)\)|^default: (.*)", text)
    if not found:
        return "", text
    return found[1] or found[2], text[: found.start()].rstrip(";,") + text[found.end() :]


def with_choices(meaning: str, choices: list[str]) -> str:
    """A meaning and the choices that it does not name."""
    if set(choices) <= set(re.findall(r"[\w-]+", meaning)):
        return meaning
    return f"{meaning}. One of {', '.join(f'`{choice}`' for choice in choices)}".lstrip(". ")


def choices_of(kind: Any) -> list[str]:
    """The values of an option's type, if it has few."""
    for one in (kind, *getattr(kind, "__args__", ())):
        if isinstance(one, type) and issubclass(one, enum.Enum):
            return [str(member.value) for member in one]
    return []


def field_row(each: Any) -> list[str]:
    """Option, default and meaning of a field of one of fairseq's dataclasses."""
    help_text = each.metadata.get("help") or WITHOUT_HELP[each.name]
    default, meaning = default_and_meaning(help_text)
    if not default and each.default not in (None, ""):
        default = "off" if each.default is False else f"`{each.default}`"
    name = f"`--{each.name.replace('_', '-')}`"
    return [name, default, with_choices(meaning, choices_of(each.type))]


def is_option(each: Any) -> bool:
    """Whether a field is an option: not one that is gone, and not what another resolves to."""
    if each.name in ("_name", "data") or "${" in str(each.default):
        return False
    return each.metadata.get("help") != argparse.SUPPRESS


def fields_table(fields: list[Any]) -> list[str]:
    """A table of fields that are options."""
    return table(["option", "default", "meaning"], [field_row(f) for f in fields if is_option(f)])


def presets_table(names: list[str]) -> list[str]:
    """What each preset sets, a column each."""
    from alum_fairseq import PRESETS

    columns = []
    for name in names:
        preset = PRESETS[name]
        values = vars(preset.adversary) | vars(preset)
        alpha = preset.pretraining_alpha, preset.finetuning_alpha
        values["alpha"] = " / ".join(f"{value:g}" for value in dict.fromkeys(alpha))
        columns.append(values)
    left_out = {"ball", "adversary", "pretraining_alpha", "finetuning_alpha"}
    rows = []
    for option in [name for name in columns[0] if name not in left_out]:
        cells = [values[option] for values in columns]
        shown = ["by precision" if cell is None else str(cell) for cell in cells]
        label = option if option == "method" else f"`--alum-{option.replace('_', '-')}`"
        rows.append([label, *shown])
    return table(["", *(f"`{name}`" for name in names)], rows)


def action_row(action: argparse.Action) -> list[str]:
    """Option, default and meaning of an option of argparse's."""
    help_text = action.help % vars(action)
    default, meaning = default_and_meaning(help_text)
    value = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    value += " ..." if value and action.nargs == "+" else ""
    name = f"{', '.join(action.option_strings)} {value}".strip()
    choices = list(map(str, action.choices or ()))
    return [f"`{name}`", default, with_choices(meaning, choices)]


def command_options(parser: argparse.ArgumentParser) -> list[str]:
    """Tables of the options of a command, by their groups."""
    lines = []
    unlisted = argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction
    for group in parser._action_groups:
        actions = group._group_actions
        if rows := [action_row(each) for each in actions if not isinstance(each, unlisted)]:
            title = "option" if group.title in ("options", "positional arguments") else group.title
            lines += ["", *table([title, "default", "meaning"], rows)]
        for commands in [each for each in actions if isinstance(each, argparse._SubParsersAction)]:
            for name, command in commands.choices.items():
                lines += ["", f"### {parser.prog} {name}", *command_options(command)]
    return lines


def parser_of(begin: Callable[[list[str]], None]) -> argparse.ArgumentParser:
    """The parser that a command makes of its own, before it reads its words."""
    parse = mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True)
    with parse as parsed, contextlib.suppress(StopIteration):
        parsed.side_effect = StopIteration
        begin([])
    return parsed.call_args.args[0]


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parser of every command, and of every subcommand that has one of its own."""
    from alum_fairseq.robustness.command import _compare, _synonyms

    for name in COMMANDS:
        yield importlib.import_module(f"alum_fairseq.{name}.command")._parser()
        if name == "robustness":
            yield from map(parser_of, (_compare, _synonyms))


def options_page() -> str:
    """The page of all options."""
    from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    from alum_fairseq import PRESETS
    from alum_fairseq.criterions.options import AlumConfig
    from alum_fairseq.models.alum_roberta import AlumRobertaModel

    ours = {f.name for f in dataclasses.fields(AlumConfig)}
    architecture = argparse.ArgumentParser()
    AlumRobertaModel.add_args(architecture)
    model_rows = [action_row(each) for each in architecture._actions]
    paper = ["calibrated", "paper", "reference"]
    criteria = [f"`{name}`" for name in sorted(CRITERION_DATACLASS_REGISTRY) if "alum_" in name]
    lines = [
        "# Options",
        "",
        MADE,
        "",
        "Options of `fairseq-train` begin with `--alum-`. Under `fairseq-hydra-train` they are",
        "fields: `criterion.alum_epsilon=0.1`, with a `+` before it where the recipe's YAML does",
        "not name the field. The log shows at start, in one line, what all of them resolve to.",
        "",
        "## The adversary",
        "",
        f"These belong to the criteria {' and '.join(', '.join(criteria).rsplit(', ', 1))}.",
        "",
        *fields_table(list(dataclasses.fields(AlumConfig))),
        "",
        "## What the presets set",
        "",
        "Two numbers of alpha: for pre-training / for fine-tuning.",
        "[Choose a method](methods.md) says what each preset does.",
        "",
        *presets_table(paper),
        "",
        *presets_table([name for name in PRESETS if name not in paper]),
        "",
        "## Criteria and tasks",
        "",
        "They also take the options of the fairseq criterion or task that they extend.",
    ]
    registries = {"criterion": CRITERION_DATACLASS_REGISTRY, "task": TASK_DATACLASS_REGISTRY}
    for option, registry in registries.items():
        for name in sorted(name for name in registry if name.startswith("alum_")):
            fields = [f for f in dataclasses.fields(registry[name]) if f.name not in ours]
            lines += ["", f"### `--{option} {name}`", ""]
            shown = fields_table(fields)
            lines += shown if len(shown) > 2 else ["No options but those of the adversary."]
    lines += [
        "",
        "## The architecture `alum_roberta`",
        "",
        "fairseq's `roberta` with one more option.",
        "",
        *table(["option", "default", "meaning"], [row for row in model_rows if "--alum" in row[0]]),
    ]
    for parser in parsers():
        level = "###" if " " in parser.prog else "##"
        lines += ["", f"{level} {parser.prog}", *command_options(parser)]
    return "\n".join(lines) + "\n"


# api.md

MODULES = {
    "predict.predictor": "Predict from Python",
    "huggingface": "In Hugging Face's Trainer",
    "adversarial.adversary": "The adversary",
    "adversarial.objectives": "What it climbs",
    "adversarial.norms": "Norms and balls",
    "adversarial.divergences": "Divergences",
    "adversarial.presets": "Presets",
    "adversarial.method": "Methods",
    "adversarial.gain": "The gain",
    "problems.problem": "Problem types",
    "robustness.parts.part": "Parts of the robustness report",
    "errors": "Errors",
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def markdown(docstring: str) -> list[str]:
    """A docstring as Markdown: roles and double backticks as code, sections as lists."""
    text = re.sub(r":math:`([^`]*)`", lambda m: f"`{plain_formula(m[1])}`", docstring)
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    lines: list[str] = []
    section = block = ""
    for line in inspect.cleandoc(text).splitlines():
        if block and line and not line.startswith("    "):
            lines, block = [*lines, "```", ""], ""
        if line.endswith("::"):
            block = "text" if "math" in line else "python"
            lines += [line[:-1] if block == "python" else "", "", f"```{block}"]
        elif block:
            shown = plain_formula(line) if block == "text" else line
            lines += [shown.removeprefix("    ")] * bool(line)
        elif line.removesuffix(":") in SECTIONS and line.endswith(":"):
            section = line.removesuffix(":")
            lines += ["", f"**{section}**", ""]
        elif section and line.startswith("    "):
            begins = re.match(r"    ([\w.*]+): ", line)
            if section != "Returns" and begins:
                lines.append(f"- `{begins[1]}`: {line[begins.end() :]}")
            else:
                lines.append(("  " if section != "Returns" else "") + line.strip())
        else:
            section = section if line else ""
            lines.append(line)
    return [*lines, "```"] if block else lines


def plain_formula(formula: str) -> str:
    """A formula of LaTeX in plain characters."""
    signs = {"sim": "~", "leftarrow": "<-", "cdot": "*", "times": "*", "|": "|"}
    dropped = ("mathcal", "mathrm", "text", "quad", "left", "right")
    signs |= dict.fromkeys((*dropped, ",", ";", "!", "\\"), "")
    formula = re.sub(r"\\(\w+|.)", lambda m: signs.get(m[1], m[1]), formula)
    return re.sub(r"[{}&]", "", formula)


def signature(thing: Any) -> str:
    """A signature without `self`, and without the package in the names of types."""
    text = re.sub(r"\(self(, )?", "(", str(inspect.signature(thing)))
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"<[^>]*>", "...", text)


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a module defines, in its order."""
    for name, thing in vars(module).items():
        defined = getattr(thing, "__module__", "") == module.__name__
        kind = inspect.isclass(thing) or inspect.isfunction(thing)
        if kind and defined and not name.startswith("_") and thing.__doc__:
            yield name, thing


def entry(name: str, thing: Any, level: int) -> list[str]:
    """Heading, signature and docstring; then the methods."""
    lines = ["", f"{'#' * level} {name}", ""]
    if not (inspect.isclass(thing) and issubclass(thing, BaseException)) and level == 3:
        lines += ["```python", f"{name}{signature(thing)}", "```", ""]
    lines += markdown(thing.__doc__)
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            called = "" if isinstance(value, property) else signature(function)
            called = re.sub(r"\(cls(, )?", "(", called)
            lines += ["", f"**`{name}.{method}{called}`**", "", *markdown(function.__doc__)]
    return lines


def api_page() -> str:
    """The page of the Python API."""
    lines = [begins("api.md") + MADE]
    for path, title in MODULES.items():
        module = importlib.import_module(f"alum_fairseq.{path}")
        lines += ["", f"## {title}", "", f"`alum_fairseq.{path}`"]
        for name, thing in public(module):
            lines += entry(name, thing, 3)
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


# The messages in troubleshooting.md

SUBJECTS = {
    "Options of training": ("criterions/", "tasks/", "adversarial/", "errors.py", "models/"),
    "Models that fit no adversary": ("encoder/", "problems/problem.py"),
    "Checkpoints": ("checkpoints/", "compat/"),
    "Tables and vocabularies": ("data/tables.py", "data/vocabulary.py", "data/subwords.py"),
    "Prepared data": ("data/",),
    "Files and folders": ("files.py", "cli.py"),
    "alum-prepare": ("prepare/",),
    "alum-convert": ("convert/",),
    "alum-predict, and labels": ("predict/", "problems/"),
    "alum-robustness": ("robustness/",),
    "Hugging Face's Trainer": ("huggingface.py",),
    "When the plugin is loaded": ("",),
}
# Functions that raise, and what they say is right.
REQUIRES = {
    "require": "",
    "require_count": "a whole number, <least> or more",
    "require_choice": "one of <choices>",
}


def name_of(node: ast.expr) -> str:
    """What stands for an expression in a pattern: its last name."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)]
    if isinstance(node, ast.Name | ast.Attribute):
        names = [node]
    words = [n.id if isinstance(n, ast.Name) else n.attr for n in names]
    helpers = {"join", "replace", "one_line", "shown", "len", "min", "max", "str", "tuple", "map"}
    helpers |= {"self", "format", "dumps", "json", "type", "sorted", "bool"}
    words = [word for word in words if word not in helpers]
    return f"<{words[0].strip('_').lower().replace('_', ' ')}>" if words else "<...>"


class Messages(ast.NodeVisitor):
    """The patterns of all messages of one file that a program can end with, or warns with."""

    def __init__(self, constants: dict[str, str], prefix: str) -> None:
        self.found: list[str] = []
        self._prefix = prefix
        self._constants = constants
        self._local: dict[str, list[ast.expr]] = {}
        self._raisers: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Notes what the names of a function stand for, then looks into it."""
        before = dict(self._local), set(self._raisers)
        self._raisers |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        for n in ast.walk(node):
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name):
                self._local.setdefault(n.targets[0].id, []).append(n.value)
        self.generic_visit(node)
        self._local, self._raisers = before

    def visit_Call(self, node: ast.Call) -> None:
        """Notes the message of a call that makes one."""
        self.generic_visit(node)
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        given = node.args
        if name in ("UsageError", "ImportError"):
            self.found += self.texts(given[0])
        elif name in ("warning", "warn"):
            self.found += [re.sub(r"%\.?\d*[sgd]", "<...>", t) for t in self.texts(given[0])]
        elif name == "FieldError" and isinstance(given[0], ast.Constant):
            field = self._field(given[0])
            self.found += [f"{field} {text}" for text in self.texts(given[1])]
        elif name in REQUIRES and name not in self._raisers and isinstance(given[0], ast.Constant):
            right = REQUIRES[name] or self.texts(given[2])[0]
            self.found.append(f"{self._field(given[0])} is <value>: it must be {right}")

    def _field(self, node: ast.Constant) -> str:
        """A field as it is shown: most stand for an option."""
        return f"{self._prefix}{node.value.replace('_', '-')}" if self._prefix else node.value

    def texts(self, node: ast.expr) -> list[str]:
        """The patterns that an expression can be; more than one where it branches."""
        if isinstance(node, ast.Constant):
            return [str(node.value)]
        if isinstance(node, ast.JoinedStr):
            parts = [
                self.texts(part.value if isinstance(part, ast.FormattedValue) else part)
                for part in node.values
            ]
            return ["".join(chosen) for chosen in itertools.product(*parts)]
        if isinstance(node, ast.IfExp):
            return self.texts(node.body) + self.texts(node.orelse)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return [a + b for a in self.texts(node.left) for b in self.texts(node.right)]
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "format":
            return [text.format(*map(name_of, node.args)) for text in self.texts(node.func.value)]
        if isinstance(node, ast.Name):
            if node.id in self._constants:
                return [self._constants[node.id]]
            values = self._local.get(node.id, [])
            if values and all(map(is_text, values)):
                return [text for each in values for text in self.texts(each)]
        return [name_of(node)]


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a text that stands in the code."""
    if isinstance(node, ast.IfExp):
        return is_text(node.body) and is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def constants_of(trees: dict[Path, ast.Module]) -> dict[str, str]:
    """Texts that a module gives a name in capitals."""
    return {
        node.targets[0].id: node.value.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def squeezed(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def says_something(message: str) -> bool:
    """Whether a pattern has words of its own: others pass on what stands elsewhere in the list."""
    return len(re.findall(r"[a-z]{2,}", re.sub(r"<[^>]*>", "", message))) > 1


def messages() -> dict[str, list[str]]:
    """All messages of the package by their subjects."""
    package = ROOT / "alum_fairseq"
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    constants = constants_of(trees)
    by_subject: dict[str, set[str]] = {subject: set() for subject in SUBJECTS}
    for path, tree in trees.items():
        place = path.relative_to(package).as_posix()
        shown_as = {"adversarial/": "--alum-", "criterions/": "--alum-", "tasks/": "--"}
        prefix = "".join(shown_as[begin] for begin in shown_as if place.startswith(begin))
        visitor = Messages(constants, prefix)
        visitor.visit(tree)
        fitting = [
            (len(begin), s)
            for s, all in SUBJECTS.items()
            for begin in all
            if place.startswith(begin)
        ]
        by_subject[max(fitting)[1]] |= {
            text for text in map(squeezed, visitor.found) if says_something(text)
        }
    return {subject: sorted(found, key=str.lower) for subject, found in by_subject.items() if found}


def troubleshooting_page() -> str:
    """The page as it stands, with a new list of messages."""
    lines = [begins("troubleshooting.md") + MADE]
    for subject, found in messages().items():
        lines += ["", f"### {subject}", "", *(f"- `{message}`" for message in found)]
    return "\n".join(lines) + "\n"


# The files in choices.md


def choices_page() -> str:
    """The page as it stands, with the files of every known data set."""
    from alum_fairseq.prepare.datasets import KNOWN_TASKS
    from alum_fairseq.prepare.plan import TEST, TRAIN, VALID

    rows = []
    for name, plan in KNOWN_TASKS.items():
        cells: dict[str, dict[str, None]] = {TRAIN: {}, VALID: {}, TEST: {}}
        for split, source in plan.sources.items():
            files = [f"`{file}`".replace("|", "` or `") for file in source.files]
            cells[split.rstrip("0123456789")] |= dict.fromkeys(files)
        rows.append([f"`{name}`", *(", ".join(each) or "none" for each in cells.values())])
    lines = table(["name", "training", "validation", "test"], rows)
    return "\n".join([begins("choices.md") + MADE, "", *lines]) + "\n"


# tutorial.ipynb


def tutorial_notebook() -> str:
    """The tutorial as a notebook: its blocks of bash and Python are cells."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    cells = []
    for part in re.split(r"(^```(?:bash|python)\n.*?^```$)", text, flags=re.DOTALL | re.MULTILINE):
        block = re.fullmatch(r"```(\w+)\n(.*)\n```", part, flags=re.DOTALL)
        source = block[2] if block else part.strip()
        if not source:
            continue
        cell: dict[str, Any] = {"cell_type": "code" if block else "markdown", "metadata": {}}
        if block:
            source = f"%%bash\n{source}" if block[1] == "bash" else source
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"id": f"cell-{len(cells)}", "source": source.splitlines(True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


# help.json


def help_texts() -> str:
    """What every command and subcommand prints for ``--help``, in lines."""
    texts = {}
    for parser in parsers():
        subcommands = [
            command
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
            for command in action.choices.values()
        ]
        for each in (parser, *subcommands):
            texts[each.prog] = each.format_help().splitlines()
    return json.dumps(texts, indent=1) + "\n"


PAGES = {
    "docs/options.md": options_page,
    "docs/api.md": api_page,
    "docs/troubleshooting.md": troubleshooting_page,
    "docs/choices.md": choices_page,
    "docs/tutorial.ipynb": tutorial_notebook,
    "alum_commands/help.json": help_texts,
}


def main() -> None:
    """Write every page that has changed."""
    logging.disable(logging.INFO)  # fairseq says at import what is not installed
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
