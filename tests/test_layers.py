"""Who imports whom: a file of the package imports only from what stands below it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "alum_fairseq"

# From the bottom up. What shares a line does not import each other.
LAYERS = (
    {"errors", "requirements", "threads"},
    {"files"},
    {"compat", "adversarial", "problems", "models"},
    {"encoder", "data"},
    {"checkpoints", "criterions"},
    {"tasks"},
    {"cli"},
    {"convert", "predict", "prepare"},
    {"huggingface", "robustness"},
    {"__init__"},  # of the package itself
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}

# The package's version, which is in its __init__.
ABOVE = {"cli": {"__init__"}, "robustness": {"__init__"}}

# These know torch alone, so that they can be read, and used, without fairseq.
TORCH_ALONE = {"adversarial", "problems"}
# torch depends on typing_extensions.
WITH_TORCH = {"torch", "typing_extensions", *sys.stdlib_module_names}


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """The line and the full name of everything that a file imports, its functions included."""
    folder = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def unit_of(name: str, package: Path) -> str:
    """The part of the package that an imported name is in: a folder, a file, or ``__init__``."""
    _, _, rest = name.partition(".")
    unit = rest.partition(".")[0]
    there = (package / unit).is_dir() or (package / f"{unit}.py").is_file()
    return unit if unit and there else "__init__"


def forbidden(package: Path) -> list[str]:
    """Every import that goes against the layers: ``file:line: what is wrong``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        unit = path.relative_to(package).parts[0].removesuffix(".py")
        where = path.relative_to(package.parent)
        if unit not in HEIGHT:
            found.append(f"{where}:1: {unit} is in no layer: add it to LAYERS")
            continue
        for line, name in sorted(imports(path, package)):
            if name.partition(".")[0] != package.name:
                if unit in TORCH_ALONE and name.partition(".")[0] not in WITH_TORCH:
                    found.append(f"{where}:{line}: {unit} knows torch alone, but imports {name}")
                continue
            other = unit_of(name, package)
            if other == unit or other in ABOVE.get(unit, ()):
                continue
            if unit in TORCH_ALONE and other != "errors":
                found.append(f"{where}:{line}: {unit} knows torch alone, but imports {name}")
            elif HEIGHT.get(other, len(LAYERS)) >= HEIGHT[unit]:
                found.append(f"{where}:{line}: {unit} imports {name}, which is not below it")
    return found


def test_every_file_imports_only_from_below() -> None:
    assert sum(1 for _ in PACKAGE.rglob("*.py")) > 50
    found = forbidden(PACKAGE)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "error"),
    [
        ("files.py", "import alum_fairseq.cli", "1: files imports alum_fairseq.cli, which"),
        ("files.py", "\nfrom alum_fairseq import cli", "2: files imports alum_fairseq.cli, which"),
        ("files.py", "from . import cli", "1: files imports alum_fairseq.cli, which"),
        ("files.py", "import alum_fairseq", "1: files imports alum_fairseq, which"),
        ("files.py", "from alum_fairseq import PRESETS", "1: files imports alum_fairseq.PRESETS"),
        (
            "encoder/tap.py",
            "def run():\n    if True:\n        from alum_fairseq.criterions.options import A",
            "3: encoder imports alum_fairseq.criterions.options.A, which is not below it",
        ),
        (
            "encoder/tap.py",
            "from ..data import tables",
            "1: encoder imports alum_fairseq.data.tables, which is not below it",
        ),
        (
            "encoder/tap.py",
            "from .. import data",
            "1: encoder imports alum_fairseq.data, which is not below it",
        ),
        ("data/__init__.py", "from .. import tasks", "1: data imports alum_fairseq.tasks, which"),
        ("compat.py", "import alum_fairseq.models", "1: compat imports alum_fairseq.models, which"),
        (
            "predict/command.py",
            "import alum_fairseq.robustness.command as r",
            "1: predict imports alum_fairseq.robustness.command, which is not below it",
        ),
        (
            "adversarial/norms.py",
            "import torch\nfrom fairseq import utils",
            "2: adversarial knows torch alone, but imports fairseq.utils",
        ),
        (
            "problems/spans.py",
            "def f():\n    import numpy as np",
            "2: problems knows torch alone, but imports numpy",
        ),
        (
            "problems/spans.py",
            "from alum_fairseq.files import whole_file",
            "1: problems knows torch alone, but imports alum_fairseq.files.whole_file",
        ),
        ("new/x.py", "", "1: new is in no layer: add it to LAYERS"),
        ("encoder/tap.py", "import alum_fairseq.new.x", "1: encoder imports alum_fairseq.new.x"),
    ],
)
def test_an_offending_file_is_named(file: str, source: str, error: str, tmp_path: Path) -> None:
    package = tmp_path / "alum_fairseq"
    good = {
        "__init__.py": "from alum_fairseq import compat, models\nfrom . import tasks",
        "encoder/tap.py": "import numpy, fairseq\nfrom ..adversarial import norms\n"
        "from alum_fairseq.errors import UsageError",
        "adversarial/norms.py": "import math, torch.nn\nfrom .. import errors\nfrom . import x",
        "cli.py": "import alum_fairseq\nfrom alum_fairseq import __version__",
        "files.py": "from alum_fairseq.errors import UsageError",
        **dict.fromkeys(("compat.py", "errors.py", "models.py", "tasks.py", "data/x.py"), ""),
        **dict.fromkeys(("criterions/options.py", "robustness/command.py"), ""),
    }
    for name, text in good.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert forbidden(package) == []
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(source)
    [found] = forbidden(package)
    assert found.startswith(f"alum_fairseq/{file}:{error}")
