"""The demo: its corpus, its vocabulary, its bookkeeping, and one run of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "demo"))

import corpus  # noqa: E402
import jobs  # noqa: E402
import report  # noqa: E402
import sentencepiece  # noqa: E402
import vocabulary  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402


@pytest.fixture(scope="module")
def found() -> list[corpus.Docstring]:
    return corpus.deduplicate(corpus.harvest(0.6, only=["python", "numpy", "scipy"]))


@pytest.fixture(scope="module")
def tokenizer(found, tmp_path_factory) -> sentencepiece.SentencePieceProcessor:
    path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece.model"
    vocabulary.train_vocabulary([t for d in found for t in d.paragraphs], 500, path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


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
        listing = "import sys, corpus; corpus.harvest(0.05, 1); print('sympy' in sys.modules)"
        folder = ROOT / "examples" / "demo"
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
        assert corpus.sentence_pairs(again, counts) == corpus.sentence_pairs(found, counts)


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

    def test_pairs(self, found):
        examples = corpus.sentence_pairs(found, self.COUNTS)
        whole = {" ".join(docstring.paragraphs) for docstring in found}
        for split in examples.values():
            assert {example.label for example in split} == {"together", "apart"}
            halves = [text for example in split for text in example.texts]
            assert len(set(halves)) == len(halves)
            for example in split:
                joined = " ".join(example.texts)
                assert any(joined in text for text in whole) is (example.label == "together")


class TestVocabulary:
    def test_fairseq_and_sentencepiece_number_pieces_alike(self, found, tokenizer, tmp_path):
        lines = [text for docstring in found[:50] for text in docstring.paragraphs]
        encoded = vocabulary.encode(tokenizer, lines)
        counts = Counter(piece for line in encoded for piece in line.split())
        vocabulary.write_dictionary(tokenizer, counts, tmp_path / "dict.txt")
        dictionary = Dictionary.load(str(tmp_path / "dict.txt"))
        assert len(dictionary) == tokenizer.get_piece_size()
        assert [dictionary[i] for i in range(len(dictionary))] == [
            tokenizer.id_to_piece(i) for i in range(len(dictionary))
        ]
        for text, line in zip(lines, encoded, strict=True):
            ids = dictionary.encode_line(line, append_eos=False, add_if_not_exist=False)
            assert ids.tolist() == tokenizer.encode(text)


class TestJobs:
    @pytest.fixture
    def runner(self, tmp_path):
        ledger = jobs.Ledger(tmp_path)
        return jobs.Runner(tmp_path, tmp_path, ledger, jobs.Screen(), lanes=2, threads=1)

    def job(self, name, code, **options):
        return jobs.Job(name, name, (sys.executable, "-c", code), **options)

    def test_runs_in_order_and_only_once(self, runner, tmp_path):
        target = tmp_path / "out"
        plan = [
            self.job("second", f"open({str(target)!r}, 'a').write('2')", after=("first",)),
            self.job("first", f"open({str(target)!r}, 'a').write('1')"),
        ]
        plan.reverse()
        assert runner.run(plan)
        assert not runner.run(plan)
        assert target.read_text() == "12"
        changed = self.job("first", f"open({str(target)!r}, 'a').write('3')")
        assert runner.run([changed, plan[1]])  # and what comes after it, once more
        assert target.read_text() == "1232"

    def test_a_failure_names_the_log_and_shows_its_end(self, runner):
        with pytest.raises(jobs.DemoError, match=r"(?s)exit status 3.*the reason.*broken\.log"):
            runner.run([self.job("broken", "print('the reason'); raise SystemExit(3)")])

    def test_resumes_with_the_same_settings_and_starts_over_with_others(self, runner, tmp_path):
        folder = tmp_path / "model"
        code = (
            "import pathlib, sys; p = pathlib.Path('model'); p.mkdir(exist_ok=True);"
            "old = (p / 'half').exists(); (p / 'half').touch(); sys.exit(0 if old else 1)"
        )
        job = self.job("train", code, folder=folder, resumes=True)
        with pytest.raises(jobs.DemoError):
            runner.run([job])
        assert runner.run([job])
        with pytest.raises(jobs.DemoError):
            runner.run([self.job("train", code, folder=folder, resumes=True, depends="new")])

    def test_logged_keeps_the_last_line_about_an_update(self, tmp_path):
        log = tmp_path / "log"
        lines = [
            ("train_inner", {"num_updates": "10", "loss": "9"}),
            ("train_inner", {"num_updates": "20", "loss": "8"}),
            ("valid", {"valid_num_updates": "10", "valid_ppl": "7"}),
            ("train_inner", {"num_updates": "20", "loss": "7"}),
        ]
        log.write_text("".join(f"now | INFO | {n} | {json.dumps(s)}\n" for n, s in lines))
        assert [s["loss"] for s in jobs.logged(log, "train_inner")] == ["9", "7"]
        assert [s["valid_ppl"] for s in jobs.logged(log, "valid")] == ["7"]

    def test_shown_commands_can_be_copied(self):
        import shlex

        command = ["fairseq-train", "a b", "--betas", "(0.9,0.98)", "--cpu", "--x", "it's"] * 9
        text = jobs.shown(command)
        assert max(map(len, text.splitlines())) <= 110
        assert shlex.split(text.replace("\\\n", " ")) == command


def test_table_says_that_one_seed_is_not_evidence():
    one = {
        "perplexity": 100.0,
        "perplexity_under_attack": 200.0,
        "gain": 50.0,
        "finetuned": {
            way: {"accuracies": [60.0], "accuracies_under_attack": [41.0]}
            for way in (report.PLAIN, report.ALUM)
        },
        "time_ratio": 1.0,
    }
    results = {
        "models": {report.PLAIN: one, report.ALUM: one},
        "classes": ["numpy", "scipy"],
        "chance": 50.0,
        "test_tokens": 1000,
        "test_examples": 100,
        "unigram_perplexity": 500.0,
        "start_update": 5,
        "updates": 10,
    }
    assert "2.00" in report.table(results)
    assert "one seed is not evidence" in report.explanation(results)
    for way in one["finetuned"].values():
        way["accuracies"] = [60.0, 62.0]
    assert report.finetuning_table(results).count("61.0 (60.0..62.0)") == 4
    assert "not evidence" in report.explanation(results)


@pytest.mark.slow
def test_from_beginning_to_end_and_again(tmp_path):
    command = [
        sys.executable, str(ROOT / "examples" / "demo" / "run.py"),
        "--scale", "tiny", "--output", str(tmp_path / "demo"),
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "All done" in first.stdout
    assert "Warning" not in first.stdout + first.stderr
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    for model in results["models"].values():
        assert model["perplexity"] > 1
        assert model["perplexity_under_attack"] > 1
        assert model["gain"] > 1
        assert len(model["curve"]) >= 10
        for way in model["finetuned"].values():
            assert way["accuracies"][0] >= way["accuracies_under_attack"][0] >= 0
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    robustness = json.loads((tmp_path / "demo" / "robustness" / "report.json").read_text())
    assert [model["name"] for model in robustness["models"]] == [report.PLAIN, report.ALUM]
    assert "Attack on the embeddings" in first.stdout.partition("The result:")[2]

    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Everything is done already" in second.stdout
    assert first.stdout.partition("The result:")[2] == second.stdout.partition("The result:")[2]
