"""What is made from the code is up to date: pages, and what ``--help`` shows."""

from __future__ import annotations

import importlib.util

import pytest
from support.places import ROOT

SPEC = importlib.util.spec_from_file_location("docs", ROOT / "scripts/docs.py")
docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs)


@pytest.mark.parametrize("name", docs.PAGES)
def test_up_to_date(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    assert page == docs.PAGES[name](), f"{name} is out of date: run `python scripts/docs.py`"
