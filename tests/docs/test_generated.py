"""The pages that are made from the code are up to date."""

from __future__ import annotations

import importlib.util

import pytest
from support.places import ROOT

SPEC = importlib.util.spec_from_file_location("docs", ROOT / "scripts/docs.py")
docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs)


@pytest.mark.parametrize("name", docs.PAGES)
def test_up_to_date(name: str) -> None:
    page = (docs.DOCS / name).read_text(encoding="utf-8")
    assert page == docs.PAGES[name](), f"docs/{name} is out of date: run `python scripts/docs.py`"
