"""docs/extending.md, followed to the letter."""

import re
import shlex
from pathlib import Path

import pytest

from spatial_ensemble import cli

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def test_the_page_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_ideas.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for command in commands.splitlines():
        path, program, *arguments = shlex.split(command)
        assert (path, program) == ("PYTHONPATH=.", "spatial-ensemble")
        assert cli.main(arguments) == 0, capsys.readouterr().err
    log = (tmp_path / "runs" / "soft" / "log.csv").read_text()
    assert "consistency" in log.splitlines()[0]
    assert "temperature: 0.7" in (tmp_path / "runs" / "soft" / "config.yaml").read_text()
    found = re.findall(r"^accuracy of the teacher: (\S+) %$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == 1 and float(found[0]) > 20  # of ten classes, after thirty steps
