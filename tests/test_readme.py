"""The README's promises: its Python runs, its commands parse and reach what they name, its files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("spatial-ensemble")]


def test_the_two_commands_of_a_fresh_machine_stand_there():
    lines = README.splitlines()
    assert "pip install -e '.[train]' && spatial-ensemble compare" in lines
    assert "pip install -e '.[dev]' && pytest" in lines


def test_the_python_runs_from_top_to_bottom(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_and_reaches_its_function(command, monkeypatch, tmp_path, capsys):
    from spatial_ensemble import cli
    from spatial_ensemble.training import recipes

    monkeypatch.chdir(tmp_path)
    (tmp_path / "IMAGES").mkdir()
    reached: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    result = SimpleNamespace(steps_done=1, teacher_accuracy=0.0, student_accuracy=0.0, checkpoint="")
    for module, name, value in (
        ("training.run", "train", result),
        ("training.evaluate", "evaluate", (0.0, "accuracy")),
        ("training.export", "export", None),
        ("training.predict", "predict", []),
        ("studies.compare", "compare", {}),
    ):

        def stand_in(*args: Any, _name: str = name, _value: Any = value, **kwargs: Any) -> Any:
            reached.append((_name, args, kwargs))
            return _value

        monkeypatch.setattr(f"spatial_ensemble.{module}.{name}", stand_in)
    words = shlex.split(command)
    assert cli.main(words[1:]) == 0, capsys.readouterr().err
    ((name, args, kwargs),) = reached
    assert name == words[1]
    said = " ".join(str(value) for value in (*args, *kwargs.values()))
    if "--recipe" in words:  # its name goes no further, its number of steps does
        place = words.index("--recipe") + 1
        words[place] = f"steps={recipes.get(words[place]).run.steps}"
    for value in words[2:]:
        assert value.startswith("--") or value in said, f"{value!r} did not arrive"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_a_link_leads_to_a_file(target):
    assert (ROOT / target).exists()
