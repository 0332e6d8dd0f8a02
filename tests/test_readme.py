"""What README, front page and integrations page promise: code runs, commands reach what they name, files exist."""

import copy
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FRONT = (ROOT / "docs" / "index.md").read_text()
INTEGRATIONS = (ROOT / "docs" / "integrations.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


COMMANDS = re.findall(
    r"^ *(spatial-ensemble .*)", "\n".join([*blocks("bash"), FRONT.replace("\\\n", "")]), re.MULTILINE
)


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


@pytest.mark.parametrize("command", sorted({command for command in COMMANDS if not command.endswith("--list")}))
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


# The first words of a row of the table of what goes wrong -> the tests that prove what the row says.
PROOFS = {
    "a resumed run": "smoothing/test_teacher.py::"
    "test_saved_at_step_17_and_loaded_in_a_new_process_it_goes_on_to_the_bit "
    "smoothing/test_state.py::test_a_module_that_owns_a_teacher_is_saved_as_safetensors",
    "a bfloat16 average": "smoothing/test_teacher_tensors.py::test_a_float32_teacher_of_a_bfloat16_student_moves "
    "smoothing/test_rounding.py::test_a_teacher_moves_as_much_as_is_due",
    "`torch.compile` renames": "smoothing/test_teacher_tensors.py::test_what_wrappers_add_to_a_name_is_left_out "
    "smoothing/test_teacher_refuses.py::test_a_student_that_does_not_match_is_named_and_the_teacher_unchanged",
    "a sharded model": "distributed/test_fsdp.py::test_gathered_teacher_equals_that_of_one_process "
    "distributed/test_fsdp.py::test_construction_and_update_communicate_nothing "
    "distributed/test_tensor_parallel.py::test_gathered_teacher_equals_that_of_one_process",
    "the average is updated": "integrations/test_optimizer.py::"
    "test_a_step_that_the_grad_scaler_skipped_or_made_void_is_none "
    "integrations/test_optimizer.py::test_accelerates_optimizer_is_unwrapped_and_counts_its_real_steps",
    "BatchNorm's statistics": "smoothing/test_teacher.py::test_buffer_policies",
    "training goes on": "smoothing/test_swap.py::test_it_ends_once_and_by_an_exception_too "
    "smoothing/test_swap.py::test_no_second_copy_of_the_weights_is_made",
    "an average of LoRA": "smoothing/test_trainable_only.py::test_its_state_holds_nothing_frozen_and_loads_strictly "
    "smoothing/test_trainable_only.py::test_a_peft_teacher_costs_what_its_adapters_cost",
    "one NaN": "smoothing/test_teacher_refuses.py::test_a_nonfinite_student_leaves_the_teacher_as_it_was",
    "each rank": "smoothing/test_teacher.py::test_global_generators_are_untouched "
    "distributed/test_ddp.py::test_teachers_are_equal_on_all_ranks_and_in_one_process "
    "distributed/test_ddp.py::test_one_flipped_bit_is_found_and_mended_by_the_majority",
    "a parent's": "smoothing/test_teacher.py::test_it_answers_in_eval_mode_without_gradients_whatever_a_parent_says",
}


def test_every_row_of_what_goes_wrong_is_proved_by_tests():
    table = README.split("## What goes wrong")[1].split("\n\n")[1]
    rows = [line.removeprefix("| ") for line in table.splitlines()[2:]]
    assert len(rows) == len(PROOFS)
    for row in rows:
        (start,) = [start for start in PROOFS if row.startswith(start)]
        for proof in PROOFS[start].split():
            file, name = proof.split("::")
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), proof


def test_a_link_within_leads_to_a_heading():
    headings = {line.strip("# ").lower().replace(" ", "-") for line in README.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_a_link_leads_to_a_file(target):
    assert (ROOT / target).exists()


def test_no_line_of_code_on_the_front_page_is_cut_off():
    code = re.findall(r"^    .*", FRONT, re.MULTILINE) + [
        line for b in blocks("python", FRONT) for line in b.splitlines()
    ]
    assert max(map(len, code)) <= 60


def replacements() -> dict[str, str]:
    """Heading -> the lines of its diff on the page of integrations."""
    found = re.findall(r"^### ([^\n]*)\n(?:(?!^#).)*?^```diff\n(.*?)^```", INTEGRATIONS, re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("side", "-+")
@pytest.mark.parametrize("framework", replacements())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_to_delete_and_what_to_put_both_run(framework, side, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    names: dict[str, Any] = {
        "torch": torch,
        "copy": copy,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "batches": torch.randn(4, 8, 4),
        "training_step": lambda x: model(x),
        "update_moving_average": lambda ema, model, decay: None,
    }
    if framework == "Lightning":
        names["pl"] = pytest.importorskip("lightning.pytorch")
    elif "Accelerate" in framework:
        names["accelerator"] = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=2)
    elif framework == "transformers":
        transformers = pytest.importorskip("transformers")
        names["Trainer"] = transformers.Trainer
        names["arguments"] = transformers.TrainingArguments("out", use_cpu=True, report_to=[])
        names["YourEMACallback"] = lambda decay: transformers.TrainerCallback()
    lines = replacements()[framework].splitlines()
    exec("\n".join(line[1:] for line in lines if line[:1] in ("", " ", side)), names)
    ours = next((names[name] for name in ("ema", "averaged", "model_ema") if name in names), None)
    if side == "+" and ours is not None:
        updates = 2 if "Accelerate" in framework else 4
        assert ours.step == (updates + 1 if framework == "timm" else updates)  # timm's loop counts from 1
