"""A study from the first command to the last: what is written, what is resumed, and what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spatial_ensemble.cli import main
from spatial_ensemble.errors import UserError
from spatial_ensemble.studies import compare as module
from spatial_ensemble.studies.arms import Arm
from spatial_ensemble.studies.compare import compare
from spatial_ensemble.studies.comparison import Comparison
from spatial_ensemble.studies.job import Run
from spatial_ensemble.studies.pool import Event
from spatial_ensemble.studies.wording import answer
from spatial_ensemble.training import checkpoint
from spatial_ensemble.training.config import Config
from spatial_ensemble.training.evaluate import evaluate
from spatial_ensemble.training.recipes import default, fixmatch_digits

PROGRAM = Path(sys.executable).with_name("spatial-ensemble")
SETTINGS = {"steps": 100, "eval_every": 10, "checkpoint_every": 10, "batch_size": 10, "device": "cpu"}
TINY = fixmatch_digits().replace(**SETTINGS)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()] + ["--unlabelled-ratio=1"]
NAMES = ("tma", "sts")
Study = tuple[Path, str, dict[str, Any]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of two smoothings and two seeds that was interrupted once: folder, what it printed, results.json.

    One checkpoint of the interrupted run is marked by a loss of 12345.
    """
    out = tmp_path_factory.mktemp("here") / "study"
    command = [PROGRAM, "compare", *FLAGS, "--seeds=2", "--smoothings", *NAMES, "--out", str(out)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # where tests run in the background it is ignored
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed
    )
    while not (saved := list(out.glob("runs/*/last.ckpt"))) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and all its workers
    output, errors = process.communicate()
    assert (process.returncode, output) == (130, "")
    assert re.fullmatch(r"spatial-ensemble: stopped; \d of 4 runs are finished and kept in .*\n", errors)

    assert {path.name for path in out.glob("runs/*/*") if path.is_file()} == {"config.yaml", "last.ckpt", "log.csv"}
    content = checkpoint.load(saved[0])
    assert 0 < content["step"] < TINY.run.steps
    content["history"][0]["loss"] = 12345.0
    del content["format"]
    checkpoint.save(saved[0], content)

    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # no bars where there is no terminal
    return out, done.stdout, read(out)


def read(out: Path) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not strict JSON")

    results: dict[str, Any] = json.loads((out / "results.json").read_text(), parse_constant=refuse)
    return results


def configuration(results: dict[str, Any]) -> Config:
    return Config.from_dict(results["config"])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a study one after the other in this process, which spares the start of others."""

    def serial(work: Any, jobs: Iterable[Any], workers: int) -> Iterator[Event[Any]]:
        for job in jobs:
            yield Event(job, work(job, lambda step: None), result=True)

    monkeypatch.setattr(module, "run_jobs", serial)
    torch.set_num_threads(1)  # as a worker does: equal threads, equal bits


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_an_interrupted_run_goes_on_from_its_checkpoint(study: Study) -> None:
    _, _, results = study
    first = [run["history"][0]["loss"] for run in results["runs"]]
    assert first.count(12345.0) == 1  # the mark: had the run begun anew, it would be gone
    for run in results["runs"]:
        assert [row["step"] for row in run["history"]] == list(range(10, 101, 10))


def test_results_json_is_as_designed(study: Study) -> None:
    out, _, results = study
    assert list(results) == ["config", "versions", "runs", "summary", "paired", "arms", "design"]
    assert configuration(results) == TINY.replace(unlabelled_ratio=1)
    assert results["versions"]["torch"] == version("torch")
    keys = ["smoothing", "seed", "teacher_accuracy", "student_accuracy", "seconds", "history"]
    assert [list(run) for run in results["runs"]] == [keys] * 4
    assert [(run["smoothing"], run["seed"]) for run in results["runs"]] == [(name, k) for name in NAMES for k in (0, 1)]
    for run in results["runs"]:
        assert {"step", "teacher_accuracy", "student_accuracy", "loss"} <= set(run["history"][0])
        assert run["history"][-1]["teacher_accuracy"] == run["teacher_accuracy"]
        assert 0 <= run["teacher_accuracy"] <= 100 and run["seconds"] > 0
    assert list(results["summary"][0]) == ["smoothing", "runs", "mean", "ci95"]
    keys = ["smoothing", "baseline", "mean_difference", "ci95", "p_value", "seeds"]
    assert list(results["paired"][0])[:6] == keys
    tma, sts = np.array([run["teacher_accuracy"] for run in results["runs"]]).reshape(2, 2)
    assert results["paired"][0]["mean_difference"] == pytest.approx((sts - tma).mean())
    assert results["arms"] == {name: {"smoothing": name} for name in NAMES}
    again = Comparison.read(out / "results.json")
    assert json.loads(json.dumps([asdict(pair) for pair in again.paired])) == results["paired"]


def test_report_figures_and_every_run_are_there(study: Study) -> None:
    out, printed, _ = study
    for name in ("report.html", "figures/accuracy.png", "figures/differences.png", "figures/ages.png"):
        assert (out / name).stat().st_size > 1000
    for name in NAMES:
        for seed in (0, 1):
            run = out / "runs" / f"{name}-seed{seed}"
            assert checkpoint.load(run / "last.ckpt")["step"] == TINY.run.steps
            assert len((run / "log.csv").read_text().splitlines()) == 11
            assert f"smoothing: {name}\n" in (run / "config.yaml").read_text()
    assert all(text in printed for text in ("minus", "sts", "2 matched seeds", str(out / "report.html")))


@pytest.mark.parametrize(
    ("method", "labels", "measure"),
    [
        ("mean_teacher", 20, "accuracy"),
        ("byol", None, "kNN accuracy"),
        ("moco", None, "kNN accuracy"),
        ("dino", None, "kNN accuracy"),
    ],
)
def test_every_method_is_compared_by_its_own_measure(
    method: str, labels: int | None, measure: str, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = default(method, "digits")
    config = config.replace(labels=labels, steps=2, warmup_steps=0, batch_size=20, device="cpu")
    if method == "moco":
        config = config.replace(queue_size=40)
    results = compare(config, tmp_path / "study", seeds=2, smoothings=("tma", "se"))
    for run in results.runs:
        trained = tmp_path / "study" / "runs" / f"{run.smoothing}-seed{run.seed}" / "last.ckpt"
        assert run.teacher_accuracy == evaluate(trained, which="teacher")[0]
        assert run.student_accuracy == evaluate(trained, which="student")[0]
    assert f"2 seeds: {measure}" in capsys.readouterr().out
    assert f"2 seeds: {measure}<" in (tmp_path / "study" / "report.html").read_text(encoding="utf-8")


def test_a_second_call_does_only_what_is_missing(
    study: Study, tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    shutil.copytree(study[0], out)
    before = files(out / "runs")
    shutil.rmtree(out / "runs" / "sts-seed1")
    results = compare(configuration(study[2]), out, seeds=2, smoothings=NAMES)
    assert capsys.readouterr().out.replace(str(out), "") == study[1].replace(str(study[0]), "")
    after = files(out / "runs")
    assert {name for name in after if before.get(name) != after[name]} == {
        n for n in after if n.startswith("sts-seed1/")
    }
    for run, again in zip(study[2]["runs"], results.runs, strict=True):
        assert run["teacher_accuracy"] == again.teacher_accuracy  # also of the run that was done anew
    assert Comparison.read(out / "results.json").runs == results.runs


@pytest.mark.parametrize(("field", "value"), [("lr", 0.5), ("steps", 8), ("unit", "channel")])
def test_another_configuration_is_refused_and_nothing_is_touched(study: Study, field: str, value: Any) -> None:
    out, before = study[0], files(study[0])
    message = f"{out} holds another study (--{field} {TINY.to_dict()[field]}, not {value}): choose another --out"
    with pytest.raises(UserError, match=re.escape(message)):
        compare(configuration(study[2]).replace(**{field: value}), out, seeds=2)
    assert files(out) == before


def test_other_images_are_no_part_of_the_same_study(tmp_path: Path, in_process: None) -> None:
    for where, shade in (("here", 10), ("there", 200)):
        for image in range(3):
            for part in ("train/a", "train/b", "test/a", "test/b"):
                (tmp_path / where / part).mkdir(parents=True, exist_ok=True)
                pixels = np.full((8, 8, 3), shade + image, np.uint8)
                Image.fromarray(pixels).save(tmp_path / where / part / f"{image}.png")
    config = TINY.replace(data="folder", path=str(tmp_path / "here"), labels=4, batch_size=2, steps=1)
    compare(config, tmp_path / "study", seeds=1, smoothings=NAMES)
    before = files(tmp_path / "study")
    with pytest.raises(UserError, match=r"another study \(--path .*here, not .*there\)"):
        compare(config.replace(path=str(tmp_path / "there")), tmp_path / "study", seeds=1, smoothings=NAMES)
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    (tmp_path / "there").rename(tmp_path / "here")
    with pytest.raises(UserError, match="the images have changed since the study in"):
        compare(config, tmp_path / "study", seeds=2, smoothings=NAMES)
    assert files(tmp_path / "study") == before


def test_options_that_were_not_given_are_those_by_default(tmp_path: Path, in_process: None) -> None:
    """A study goes on from Python as from the command line, and after an upgrade that brought an option."""
    some = TINY.replace(steps=2, eval_every=1, unlabelled_ratio=1)
    compare(some, tmp_path, seeds=1, smoothings=["se", "tma"])
    content = json.loads((tmp_path / "results.json").read_text())
    assert configuration(content) == some
    del content["config"]["labelled_apart"], content["runs"][1]  # the second was not entered before it was interrupted
    (tmp_path / "results.json").write_text(json.dumps(content))
    (tmp_path / ".results.json.7.tmp").touch()
    second = tmp_path / "runs" / "se-seed0" / "last.ckpt"
    saved = checkpoint.load(second)
    del saved["format"], saved["config"]["labelled_apart"]
    checkpoint.save(second, saved)
    before = files(tmp_path / "runs")
    assert len(compare(some, tmp_path, seeds=1, smoothings=["se", "tma"]).runs) == 2
    assert files(tmp_path / "runs") == before and not list(tmp_path.glob(".*"))


def test_a_run_of_another_study_is_refused_before_any_starts(study: Study, tmp_path: Path, in_process: None) -> None:
    shutil.copytree(study[0] / "runs" / "sts-seed1", tmp_path / "runs" / "sts-seed1")
    before = files(tmp_path)
    with pytest.raises(UserError, match=rf"sts-seed1 holds another study \(--lr {TINY.optim.lr}, not 0.5\)"):
        compare(configuration(study[2]).replace(lr=0.5), tmp_path, seeds=2)
    assert files(tmp_path) == before


def test_what_cannot_be_a_study_is_refused(tmp_path: Path) -> None:
    config = fixmatch_digits()
    with pytest.raises(UserError, match="--seeds must be at least 1, got 0"):
        compare(config, tmp_path / "new", seeds=0)
    with pytest.raises(UserError, match="--workers must be at least 1, got -1"):
        compare(config, tmp_path / "new", workers=-1)
    with pytest.raises(UserError, match=r"--smoothings must be some of .* got 'ema'"):
        compare(config, tmp_path / "new", smoothings=["ema"])
    with pytest.raises(UserError, match="--until must be a positive number of percentage points, got 0"):
        compare(config, tmp_path / "new", until=0)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: give a folder"):
        compare(config, tmp_path / "file")
    (tmp_path / "results.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="was not written by compare"):
        compare(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "results.json"]


def test_a_failing_run_is_one_line_with_the_rest_in_a_file(tmp_path: Path, in_process: None) -> None:
    config = TINY.replace(method="spy.Broken", labels=None)
    with pytest.raises(UserError) as caught:
        compare(config, tmp_path, seeds=1, smoothings=["se"])
    assert "one (traceback: " in str(caught.value) and "0 of 1 runs are finished and kept" in str(caught.value)
    assert 'raise IndexError("the second' in (tmp_path / "runs" / "se-seed0" / "error.txt").read_text()


def test_a_method_without_labels_is_judged_by_its_neighbours(tmp_path: Path, in_process: None) -> None:
    config = TINY.replace(method="spy.Unlabelled", labels=None, steps=2)
    results = compare(config, tmp_path, seeds=1, smoothings=["se"])
    assert 50 < results.runs[0].teacher_accuracy <= 100  # digits have good neighbours under almost any features
    assert results.paired == () and results.summary[0].ci95 is None
    assert "kNN accuracy" in (tmp_path / "report.html").read_text()


def test_arms_of_the_users_are_trained_as_they_say(tmp_path: Path, in_process: None) -> None:
    config = TINY.replace(steps=2, eval_every=1)
    arms = [Arm("fast", {"smoothing": "tma", "momentum": 0.5}), Arm("long", {"steps": 3, "unlabelled_ratio": 1})]
    results = compare(config, tmp_path, seeds=2, smoothings=["tma"], arms=arms)
    assert [(run.smoothing, run.seed) for run in results.runs] == [
        (name, seed) for name in ("tma", "fast", "long") for seed in (0, 1)
    ]
    saved = {name: checkpoint.load(tmp_path / "runs" / f"{name}-seed1" / "last.ckpt") for name in ("fast", "long")}
    assert saved["fast"]["config"] == config.replace(smoothing="tma", momentum=0.5, network="small", seed=1).to_dict()
    assert saved["long"]["step"] == 3 and saved["long"]["config"]["smoothing"] == "sts"
    content = read(tmp_path)
    assert content["arms"]["fast"] == {"smoothing": "tma", "momentum": 0.5}
    before = files(tmp_path / "runs")
    other = r"another study \(arm fast: smoothing tma, momentum 0.5, not smoothing tma, momentum 0.6\)"
    with pytest.raises(UserError, match=other):
        compare(config, tmp_path, seeds=2, arms=[Arm("fast", {"smoothing": "tma", "momentum": 0.6})])
    more = compare(config, tmp_path, seeds=2, smoothings=["tma"], arms=[Arm("slow", {"momentum": 0.99})])
    assert [arm.name for arm in more.arms] == ["tma", "fast", "long", "slow"]  # what there is stays
    assert {name: before[name] for name in before} == {n: f for n, f in files(tmp_path / "runs").items() if n in before}


def test_a_bad_arm_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for settings, message in (
        ({"momentun": 0.8}, "arm mine: .*'momentun'"),
        ({"momentum": 1.8}, r"arm mine: .*momentum must be .* got 1.8"),
        ({"momentum": "high"}, "arm mine: .*momentum.*high"),
        ({"labels": 25}, "25"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            compare(fixmatch_digits(), tmp_path / "new", arms=[Arm("mine", settings)])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_arms_and_until_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.yaml").write_text("arms:\n  fast: {smoothing: tma, momentum: 0.5}\nsmoothings: []\n")
    command = [PROGRAM, "compare", "--config=study.yaml", "--arm", "its-twin: matched=sts buffer-momentum=0.9"]
    command += ["--until=100", "--max-seeds=8", "--steps=1", "--device=cpu", "--out=study", "--workers=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    results = read(tmp_path / "study")
    assert results["arms"] == {
        "fast": {"smoothing": "tma", "momentum": 0.5},
        "its-twin": {"smoothing": "tma-matched", "buffer_momentum": 0.9},
    }
    ((low, high),) = [pair["ci95"] for pair in results["paired"]]
    assert high - low <= 200 and results["summary"][0]["runs"] >= 5  # the first number of seeds with an interval
    for flags, message in (
        (["--arm", "fast"], "--arm must be of the form \"NAME: FIELD=VALUE FIELD=VALUE\", got 'fast'"),
        (["--arm", "fast: momentum=0.8"], "arm fast: the name is taken, choose another"),
        (["--drop", "--max-seeds=9"], "--drop belongs to --until: use --seeds"),
    ):
        arguments = ["compare", f"--config={tmp_path / 'study.yaml'}", *flags, f"--out={tmp_path / 'new'}"]
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"spatial-ensemble: error: {message}\n"
    assert not (tmp_path / "new").exists()


class Drawn:
    """In place of training: an accuracy that is a function of arm and seed."""

    def __init__(self, gains: dict[str, float], spread: float) -> None:
        self.gains, self.spread, self.order = gains, spread, list[tuple[str, int]]()

    def __call__(self, work: Any, jobs: Iterable[Any], workers: int) -> Iterator[Event[Any]]:
        for job in jobs:
            self.order.append(job.key)
            shared, own = (
                np.random.default_rng(job.config.run.seed),
                np.random.default_rng([*job.arm.encode(), job.config.run.seed]),
            )
            value = 80 + 5 * shared.standard_normal() + self.gains[job.arm] + self.spread * own.standard_normal()
            job.out.mkdir(parents=True, exist_ok=True)
            (job.out / "last.ckpt").touch()
            history = [{"step": 1, "teacher_accuracy": value, "student_accuracy": value, "loss": 1.0}]
            yield Event(job, Run(job.arm, job.config.run.seed, value, value, 1.0, history), result=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    jobs = Drawn({"tma": 0.0, "sts": 0.1, "bad": -9.0}, spread=0.8)
    monkeypatch.setattr(module, "run_jobs", jobs)
    monkeypatch.setattr(module, "_ages", lambda study, out: None)
    monkeypatch.setattr(module, "_check", lambda study, jobs, missing: None)
    return jobs


def test_seeds_are_added_until_every_interval_is_narrow(
    tmp_path: Path, drawn: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("tma", "sts")
    first = compare(TINY, tmp_path, smoothings=names, until=1.5)
    needed = len(first.summary) and first.summary[0].runs
    assert 3 < needed < 64 and first.settled(1.5, names)
    fewer = replace(first, runs=tuple(run for run in first.runs if run.seed < needed - 1))
    assert not fewer.settled(1.5, names)  # not one seed more than needed
    assert drawn.order == [(name, seed) for seed in range(needed) for name in names]
    drawn.order.clear()
    again = compare(TINY, tmp_path, smoothings=names, until=1.5)
    assert drawn.order == [] and again.paired == first.paired
    more = compare(TINY, tmp_path, smoothings=names, until=1.0)  # a goal that is further off goes on from there
    assert more.summary[0].runs > needed and drawn.order[0] == ("tma", needed)
    fixed = compare(TINY, tmp_path, smoothings=names, seeds=3)
    assert fixed.design.until == 1.0 and "confidence sequences" in (tmp_path / "report.html").read_text()
    assert "Student" not in capsys.readouterr().out


def test_no_seed_is_added_beyond_the_greatest_number(tmp_path: Path, drawn: Drawn) -> None:
    results = compare(TINY, tmp_path, smoothings=("tma", "sts"), until=0.01, max_seeds=7)
    assert [entry.runs for entry in results.summary] == [7, 7]
    assert "Not settled" in answer(results)


def test_an_arm_that_is_shown_to_be_worse_gets_no_more_seeds(tmp_path: Path, drawn: Drawn) -> None:
    bad = [Arm("bad", {"momentum": 0.1})]
    results = compare(TINY, tmp_path, smoothings=("tma", "sts"), arms=bad, until=1.0, drop=True)
    runs = {entry.smoothing: entry.runs for entry in results.summary}
    assert runs["bad"] < runs["tma"] == runs["sts"] and results.settled(1.0, ("tma", "sts"))
    assert results.beaten == ("bad",)
