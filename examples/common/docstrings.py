"""English prose that every machine with Python has: the docstrings of installed packages.

Source files are parsed with :mod:`ast` and never imported. What comes out is paragraphs of prose,
without code, tables and markup, each known by package and file, and split by file: all that is
made of them (corpus, classification) shares that split, so that no file, and no
text that occurs in two files, is on both sides.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from alum_fairseq.files import whole_folder

STDLIB = "python"

# Import name: what else prose calls the package. All of it gives the class away.
PACKAGES: dict[str, tuple[str, ...]] = {
    STDLIB: ("cpython", "pep", "guido"),
    "torch": ("pytorch", "aten", "torchscript", "libtorch"),
    "numpy": ("np",),
    "scipy": ("sp",),
    "sklearn": ("scikit-learn", "scikit"),
    "sympy": (),
    "networkx": ("nx",),
    "matplotlib": ("pyplot", "plt", "mpl", "matlab"),
}

SPLITS = ("train", "valid", "test")

# Not written as prose, or not part of the package proper.
_SKIPPED_FOLDERS = re.compile(
    r"(^|/)(tests?|testing|_?vendor(ed)?|_generated|externals?|site-packages|dist-packages"
    r"|idlelib|lib2to3|turtledemo|__pycache__|ensurepip|encodings|pydoc_data)(/|$)"
)
_LARGEST_FILE = 400_000  # bytes; larger ones are tables and generated code


@dataclass(frozen=True)
class Docstring:
    """What is left of one docstring: its paragraphs of prose."""

    package: str
    path: str
    paragraphs: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split that its file belongs to."""
        return split_of(f"{self.package}/{self.path}")


def split_of(path: str) -> str:
    """Which split a file belongs to: 75% train, 10% valid, 15% test, by a hash of its path."""
    percent = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 100
    return "train" if percent < 75 else "valid" if percent < 85 else "test"


# ---------------------------------------------------------------------------------- finding files


def installed_packages() -> dict[str, Path]:
    """The packages of :data:`PACKAGES` that are there, and their folders. Nothing is imported."""
    folders = {STDLIB: Path(sysconfig.get_paths()["stdlib"])}
    for name in PACKAGES:
        if name == STDLIB:
            continue
        spec = importlib.util.find_spec(name)  # a top-level name is found without importing it
        if spec is not None and spec.submodule_search_locations:
            folders[name] = Path(next(iter(spec.submodule_search_locations)))
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def package_versions() -> dict[str, str]:
    """Version of every package that is read: another version, another corpus."""
    versions = {STDLIB: sys.version.split()[0]}
    for name in installed_packages():
        if name != STDLIB:
            distribution = {"sklearn": "scikit-learn"}.get(name, name)
            try:
                versions[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "unknown"
    return versions


def choose_files(folder: Path, megabytes: float, seed: int = 1) -> list[str]:
    """Paths (relative, sorted) of a random choice of source files, up to a total size."""
    files = []
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder).as_posix()
        if not _SKIPPED_FOLDERS.search(relative) and path.stat().st_size <= _LARGEST_FILE:
            files.append((relative, path.stat().st_size))
    files.sort()
    random.Random(seed).shuffle(files)
    chosen, total = [], 0
    for relative, size in files:
        if total < megabytes * 1e6:
            chosen.append(relative)
            total += size
    return sorted(chosen)


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a source file, in the order of the file; none if it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strange escapes in other people's files
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield text


# --------------------------------------------------------------------------------- finding prose

_BULLET = re.compile(r"^(?:[-*+•o]|\(?\d{1,2}[.)]|\(?[a-z]\)|#\.)\s+(?=\S)")
# "name (type): text" and ":param name: text"; what follows is often a sentence.
_ARGUMENT = re.compile(r"^(?::\w+[^:]{0,40}:|[`*\w.,/ ]{1,40}(?:\([^()]*\))?\s?:|--?[\w-]+)\s+")
_DESCRIBED_ARGUMENT = re.compile(
    r"^(?:[`*\w., ]+\([^()]*\):\s+\S|:\w+[^:]*:\s+\S|[`*\w., ]*[`*\w]:\s+[A-Z\"'`])"
)
_DIRECTIVE = re.compile(r"^\.\.(\s|$)")
_PROSE_DIRECTIVE = re.compile(
    r"^\.\. (note|warning|tip|important|caution|attention|hint|versionadded|versionchanged"
    r"|deprecated|rubric|admonition)::", re.I
)  # fmt: skip
_SECTION = re.compile(r"^([=\-~^\"'`#*+.])\1{2,}\s*$")
_NO_PROSE_SECTIONS = re.compile(r"^(examples?|references?|see also|usage|benchmarks?)\s*:*$", re.I)
_BOILERPLATE = re.compile(
    r"copyright|licen[sc]e|warrant|all rights reserved|@author|e-?mail|internal use only", re.I
)
_MARKUP = (
    (re.compile(r":[\w:+-]+:`([^`<]*?)\s*<[^`>]*>`"), r"\1"),
    (re.compile(r":[\w:+-]+:`~?(?:[\w.]*\.)?([^`]*)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+"), r"\1"),
    (re.compile(r"\s*\[[\w#*.-]{1,12}\]_"), ""),
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),
    (re.compile(r"(?<!\w)\*{1,2}(\w[^*]*)\*{1,2}(?!\w)"), r"\1"),
    (re.compile("[\u201c\u201d]|``|''"), '"'),
    (re.compile("[\u2018\u2019]"), "'"),
)
_CODE = re.compile(
    r">>>|\.\. |::|\w\(\w*=|[\w)\]] ?(?:==?|[+*/%|&-]=|->) ?[\w(\[]|[{}|\\^$@~]|\[[^\]]*[,:]"
    r"|https?:|\w\[\w|\w+_\w+_\w+|/\w+/|<\w+>"
)
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_PLAIN_TOKEN = re.compile(r"[\"'(]*[A-Za-z]+(?:['/-][A-Za-z]+)*[\"')]*[.,;:!?]*[\"')]*")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by can for from has have if in into is it its may not of on or "
        "should such than that the then there these this to was when which will with you",
    )
)


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring that are English prose, one line each, without markup."""
    found = []
    for block in _blocks(inspect.cleandoc(docstring).splitlines()):
        text = _BULLET.sub("", " ".join(" ".join(block).split()))
        if not _reads_as_prose(text):
            text = _capitalised(_ARGUMENT.sub("", text, count=1))
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
        text = " ".join(text.split())
        if _reads_as_prose(text):
            found.append(text)
    return found


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that belong together; what is code, an example or a reference is left out."""
    block: list[str] = []
    hanging: int | None = None  # indentation of the block's second line
    first = 0
    skip_deeper_than: int | None = None
    skip_section = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if stripped and skip_deeper_than is not None and indent <= skip_deeper_than:
            skip_deeper_than = None
        if _SECTION.match(following) and stripped:  # a heading
            skip_section = bool(_NO_PROSE_SECTIONS.match(stripped))
            stripped = ""
        elif _NO_PROSE_SECTIONS.match(stripped):
            skip_deeper_than = indent
        if (
            not stripped
            or skip_section
            or skip_deeper_than is not None
            or _SECTION.match(stripped)
            or _DIRECTIVE.match(stripped)
            or stripped.startswith((">>>", "... "))
        ):
            if block:
                yield block
                block = []
            if _DIRECTIVE.match(stripped) and not _PROSE_DIRECTIVE.match(stripped):
                skip_deeper_than = indent
            continue
        starts_anew = (
            not block
            or bool(_BULLET.match(stripped))
            or indent < first
            or (hanging is not None and indent != hanging)
            # a term, and its definition below it
            or (hanging is None and indent > first and not _hangs(block[0]))
        )
        if starts_anew:
            if block:
                yield block
            block, first, hanging = [stripped], indent, None
        else:
            block.append(stripped)
            hanging = indent
        if stripped.endswith("::"):
            yield block
            block = []
            skip_deeper_than = indent
    if block:
        yield block


def _hangs(line: str) -> bool:
    """Whether the line goes on with a deeper indentation: a bullet, or an argument's description.

    Not so "name : type", and "name: type": what is below that is a paragraph of its own.
    """
    return bool(_BULLET.match(line) or _DESCRIBED_ARGUMENT.match(line))


def _reads_as_prose(text: str) -> bool:
    if not (text[:1].isupper() or text[:1] in "\"'(") or text[-1:] not in {".", "!", "?"}:
        return False
    if _CODE.search(text) or _BOILERPLATE.search(text) or "..." in text or not text.isprintable():
        return False
    tokens = text.split()
    plain = sum(_PLAIN_TOKEN.fullmatch(token) is not None for token in tokens)
    words = {word.lower() for word in _WORD.findall(text)}
    return 8 <= len(tokens) <= 200 and plain >= 0.85 * len(tokens) and len(words & _COMMON) >= 3


# ------------------------------------------------------------------------------------ harvesting


def _read(job: tuple[str, Path, list[str]]) -> list[Docstring]:
    package, folder, files = job
    found = []
    for path in files:
        source = (folder / path).read_text(encoding="utf-8", errors="ignore")
        for docstring in docstrings(source):
            prose = paragraphs(docstring)
            if prose:
                found.append(Docstring(package, path, tuple(prose)))
    return found


def harvest(
    megabytes: float,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
    only: Iterable[str] | None = None,
) -> list[Docstring]:
    """Read the docstrings of all packages that are there.

    Args:
        megabytes: how much source code of each package is read.
        workers: how many processes read it.
        on_progress: called with the number of files read so far, and of all of them.
        only: the packages to read; all of :data:`PACKAGES` by default.

    Returns:
        The docstrings, in an order that depends on the installed packages alone.
    """
    wanted = set(PACKAGES if only is None else only)
    jobs = []
    for package, folder in installed_packages().items():
        if package in wanted:
            files = choose_files(folder, megabytes)
            jobs += [(package, folder, files[i : i + 25]) for i in range(0, len(files), 25)]
    total, done = sum(len(job[2]) for job in jobs), 0
    found: list[Docstring] = []
    with ProcessPoolExecutor(workers) as pool:
        for job, part in zip(jobs, pool.map(_read, jobs), strict=True):
            found += part
            done += len(job[2])
            if on_progress is not None:
                on_progress(done, total)
    return found


def deduplicate(
    found: Sequence[Docstring], length: int = 6, overlap: float = 0.5
) -> list[Docstring]:
    """Leave out every paragraph whose runs of ``length`` words mostly occurred before.

    That is what keeps a text that was copied from file to file from being on both sides of a split.
    """
    seen: set[int] = set()
    kept = []
    for docstring in found:
        fresh = []
        for paragraph in docstring.paragraphs:
            words = [word.lower() for word in _WORD.findall(paragraph)]
            runs = {
                _stable_hash(" ".join(words[i : i + length]))
                for i in range(max(1, len(words) - length + 1))
            }
            if len(runs & seen) <= overlap * len(runs) and not (len(runs) == 1 and runs <= seen):
                fresh.append(paragraph)
            seen |= runs
        if fresh:
            kept.append(Docstring(docstring.package, docstring.path, tuple(fresh)))
    return kept


def _stable_hash(text: str) -> int:
    # Python's own hash of a string differs from process to process.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# ---------------------------------------------------------------------------- what is made of it


def documents(found: Sequence[Docstring], split: str) -> list[list[str]]:
    """The corpus of a split: for each source file the paragraphs of its docstrings."""
    by_file: dict[tuple[str, str], list[str]] = {}
    for docstring in found:
        if docstring.split == split:
            by_file.setdefault((docstring.package, docstring.path), []).extend(docstring.paragraphs)
    files = list(by_file.values())
    random.Random(7).shuffle(files)
    return files


def names_a_package(text: str) -> bool:
    """Whether the text names one of the packages, in whatever way: that would give it away."""
    return _NAMES.search(text) is not None


_NAMES = re.compile(
    r"(?<![a-z])(?:"
    + "|".join(sorted({*PACKAGES, *(alias for names in PACKAGES.values() for alias in names)}))
    + r")(?![a-z])",
    re.I,
)


@dataclass(frozen=True)
class Example:
    """One example of a task: its text or texts, and its label."""

    texts: tuple[str, ...]
    label: str


def classification(
    found: Sequence[Docstring], per_class: dict[str, int], seed: int = 1
) -> dict[str, list[Example]]:
    """Which package does this paragraph come from?

    Paragraphs that name any of the packages are left out. Classes are equally frequent in
    training; packages with too little text are no class.

    Args:
        found: the docstrings.
        per_class: how many examples of each class each split gets at most.
        seed: of the choice among the paragraphs.
    """
    pools: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for docstring in found:
        pool = pools[docstring.split].setdefault(docstring.package, [])
        pool += [
            text
            for text in docstring.paragraphs
            if 10 <= len(text.split()) <= 60 and not names_a_package(text)
        ]
    largest = max((len(pool) for pool in pools["train"].values()), default=0)
    needed = min(per_class["train"], largest) // 2
    classes = [
        package
        for package in PACKAGES
        if len(pools["train"].get(package, [])) >= max(needed, 1)
        and all(pools[split].get(package) for split in SPLITS)
    ]
    examples: dict[str, list[Example]] = {}
    for split in SPLITS:
        chooser = random.Random(f"{seed} {split}")
        most = per_class[split]
        if split == "train":
            most = min([most, *(len(pools[split][name]) for name in classes)])
        examples[split] = [
            Example((text,), name)
            for name in classes
            for text in chooser.sample(pools[split][name], min(most, len(pools[split][name])))
        ]
        chooser.shuffle(examples[split])
    return examples


def _main(folder: Path, megabytes: float) -> None:
    found = deduplicate(harvest(megabytes))
    with whole_folder(folder) as made:
        for split in SPLITS:
            files = documents(found, split)
            # An empty line ends a document.
            lines = (line for file in files for line in [*file, ""])
            (made / f"{split}.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":  # python docstrings.py FOLDER MEGABYTES
    _main(Path(sys.argv[1]), float(sys.argv[2]))
