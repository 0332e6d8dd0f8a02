"""What a run tells while it runs."""

import io
import sys

import pytest

from spatial_ensemble.training.logs import progress_bar, tensorboard, write_csv

ROWS = [
    {"step": step, "teacher_accuracy": 10.0 * step, "student_accuracy": 5.0, "loss": 0.1 + step} for step in (1, 2, 3)
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, shown, expected", [(Terminal(), True, True), (Terminal(), False, False)])
def test_the_bar_is_shown_on_a_terminal_when_asked_for(monkeypatch, stream, shown, expected):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(0, 3, shown) as advance:
        for row in ROWS:
            advance(int(row["step"]), row)
    assert ("3/3" in stream.getvalue() and "teacher 30.00 %" in stream.getvalue()) == expected
    assert bool(stream.getvalue()) == expected


def test_the_bar_is_silent_elsewhere(monkeypatch, capsys):
    with progress_bar(0, 3, True) as advance:
        advance(1, {})
    assert capsys.readouterr() == ("", "")


def test_csv_is_exact(tmp_path):
    write_csv(tmp_path / "log.csv", ROWS)
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "step,teacher_accuracy,student_accuracy,loss"
    assert [[float(value) for value in line.split(",")] for line in lines] == [list(row.values()) for row in ROWS]


def test_tensorboard_drops_what_an_interrupted_run_wrote_too_much(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard(tmp_path, 1, True) as write:
        for row in ROWS:
            write(row)
    with tensorboard(tmp_path, 2, True) as write:
        write({**ROWS[1], "loss": 7.0})
    events = accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, round(event.value, 3)) for event in events] == [(1, 1.1), (2, 7.0)]


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    for wanted in (True, False):
        if wanted:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with tensorboard(tmp_path, 1, wanted) as write:
            write(ROWS[0])
        assert list(tmp_path.iterdir()) == []


def test_a_metric_may_set_in_later_than_others(tmp_path):
    write_csv(tmp_path / "log.csv", [{"step": 1}, {"step": 2, "late": 0.5}])
    assert (tmp_path / "log.csv").read_text().split() == ["step,late", "1,", "2,0.5"]
