"""Prose from docstrings: what is kept, how it is split, the task that is made of it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "common"))

import docstrings as corpus  # noqa: E402


@pytest.fixture(scope="module")
def found() -> list[corpus.Docstring]:
    return corpus.deduplicate(corpus.harvest(0.6, only=["python", "numpy", "scipy"]))


DOCSTRING = """Return the mean of the values that are not masked.

    The mean is computed over the whole array, unless an *axis* is given, and
    is then returned as a `~numpy.ndarray` of one dimension less::

        code = that(is, left=out)

    .. note:: What follows the marker.

        A note like this one is kept, since it is written for the reader.

    .. math::

        x = \\sum_i x_i / n

    Parameters
    ----------
    axis : int, optional
        The axis along which the mean is computed. If it is not given, all are.
    keep (bool): whether the axes that are reduced are left in the result
        with size one, so that it can be broadcast.

    Examples
    --------
    >>> mean([1, 2])
    1.5
    This sentence is in an example, and so it is not in the corpus.

    ========  =====
    a table   of it
    ========  =====
    """


class TestParagraphs:
    def test_keeps_prose_and_drops_the_rest(self):
        assert corpus.paragraphs(DOCSTRING) == [
            "Return the mean of the values that are not masked.",
            "A note like this one is kept, since it is written for the reader.",
            "The axis along which the mean is computed. If it is not given, all are.",
            "Whether the axes that are reduced are left in the result with size one, so that it "
            "can be broadcast.",
        ]

    def test_no_code_in_what_is_harvested(self, found):
        texts = [text for docstring in found for text in docstring.paragraphs]
        assert len(texts) > 300
        for text in texts:
            assert ">>>" not in text
            assert "::" not in text
            assert "`" not in text
            assert "\n" not in text
            assert "copyright" not in text.lower()
            assert text[-1] in ".!?"

    def test_never_imports_what_it_reads(self):
        listing = "import sys, docstrings as d; d.harvest(0.05, 1); print('sympy' in sys.modules)"
        folder = ROOT / "examples" / "common"
        done = subprocess.run(
            [sys.executable, "-c", listing], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"


class TestSplits:
    def test_no_file_and_no_text_is_on_two_sides(self, found):
        files = {split: set() for split in corpus.SPLITS}
        texts = {split: set() for split in corpus.SPLITS}
        for docstring in found:
            files[docstring.split].add((docstring.package, docstring.path))
            texts[docstring.split].update(docstring.paragraphs)
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            assert files[one]
            assert files[other]
            assert not files[one] & files[other]
            assert not texts[one] & texts[other]

    def test_shares(self):
        shares = Counter(corpus.split_of(f"package/module_{i}.py") for i in range(4000))
        assert shares["train"] / 4000 == pytest.approx(0.75, abs=0.03)
        assert shares["valid"] / 4000 == pytest.approx(0.10, abs=0.03)

    def test_copies_are_dropped_even_if_a_word_differs(self):
        text = "Compute the largest of the values that are found along the axis of the array."
        copy = text.replace("largest", "smallest").replace("array", "tensor")
        other = "A socket is closed when the last of its references is gone, if not before."
        kept = corpus.deduplicate(
            [
                corpus.Docstring("numpy", "a.py", (text,)),
                corpus.Docstring("torch", "b.py", (copy, other)),
                corpus.Docstring("torch", "c.py", (text,)),
            ]
        )
        assert [docstring.paragraphs for docstring in kept] == [(text,), (other,)]

    def test_the_same_every_time(self, found):
        again = corpus.deduplicate(corpus.harvest(0.6, 1, only=["python", "numpy", "scipy"]))
        assert again == found
        counts = {"train": 40, "valid": 5, "test": 5}
        assert corpus.classification(again, counts) == corpus.classification(found, counts)


class TestTasks:
    COUNTS = {"train": 40, "valid": 5, "test": 10}  # noqa: RUF012

    def test_classes_are_equally_frequent_in_training(self, found):
        examples = corpus.classification(found, self.COUNTS)
        assert Counter(example.label for example in examples["train"]) == {
            "python": 40,
            "numpy": 40,
            "scipy": 40,
        }

    def test_a_package_without_enough_text_is_no_class(self, found):
        few = corpus.Docstring("torch", "x.py", ("A paragraph of ten words is not all that long.",))
        examples = corpus.classification([*found, few], self.COUNTS)
        assert "torch" not in {e.label for split in examples.values() for e in split}

    def test_the_label_is_not_in_the_text(self, found):
        for split in corpus.classification(found, self.COUNTS).values():
            for example in split:
                assert not corpus.names_a_package(example.texts[0])

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("a NumPy array", True),
            ("numpy.ndarray of floats", True),
            ("see scikit-learn", True),
            ("Np.ndarray The array", True),
            ("the Matplotlib figure", True),
            ("it is pythonic", False),
            ("a torchlight", False),
            ("the input of a spline", False),
        ],
    )
    def test_names_a_package(self, text, names):
        assert corpus.names_a_package(text) is names

    def test_examples_come_from_the_split_that_they_are_in(self, found):
        home = {text: d.split for d in found for text in d.paragraphs}
        for split, examples in corpus.classification(found, self.COUNTS).items():
            assert {home[example.texts[0]] for example in examples} == {split}
