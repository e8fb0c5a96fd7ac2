"""The manual builds as a site, and all its links lead somewhere, on a code host too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.places import ROOT

DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *DOCS.rglob("*.md")]
PAGES.append(ROOT / "alum_fairseq/README.md")
CODE = re.compile(r"^ *```.*?^ *```$", flags=re.DOTALL | re.MULTILINE)


def headings(page: Path) -> list[str]:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)


def anchor(heading: str, host: bool) -> str:
    """As code hosts make it, or mkdocs."""
    words = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"\s", "-", words) if host else re.sub(r"[\s-]+", "-", words)


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", CODE.sub("", page.read_text(encoding="utf-8")))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{link}: the site holds docs/ alone"
        if fragment:
            for host in (True, False):
                assert fragment in {anchor(each, host) for each in headings(target)}, link


def test_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/options/index.html").is_file()


def test_every_page_is_in_the_navigation() -> None:
    nav = re.findall(r"[\w/.-]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(nav) == len(set(nav))
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    cards = {name for name in there if re.match(r"gpu/(?!README)", name)}  # gpu.sh makes more
    assert set(nav) | cards == there
