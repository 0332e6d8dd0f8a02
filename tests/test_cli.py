"""The command line: what it does, and one clear line with exit code 2 for every mistake of the user's."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from spatial_ensemble.cli import main
from spatial_ensemble.methods.fixmatch import FixMatch

QUICK = ["--labels", "20", "--batch-size", "10", "--unlabelled-ratio", "1", "--lr", "0.01"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A finished run in work/run, folders of images, and files that are not what they seem."""
    work = tmp_path_factory.mktemp("cli")
    assert main(["train", "fixmatch", "--data", "digits", *QUICK, "--steps", "3", "--out", str(work / "run")]) == 0
    random = np.random.default_rng(0)

    def folder(name, classes, images=4):
        for part in ("train", "test"):
            for label in classes:
                (work / name / part / label).mkdir(parents=True)
                for index in range(images):
                    pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(work / name / part / label / f"{index}.png")
        return work / name

    folder("pets", ["cat", "dog"])
    (folder("hole", ["cat", "dog"]) / "train" / "none").mkdir()
    (folder("broken", ["cat", "dog"]) / "train" / "cat" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    (folder("text", ["cat", "dog"]) / "train" / "dog" / "1.png").write_text("no image")
    folder("one", ["cat"])
    (work / "empty").mkdir()
    whole = (work / "run" / "last.ckpt").read_bytes()
    (work / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    (work / "empty.ckpt").write_bytes(b"")
    (work / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, work / "foreign.ckpt")
    (work / "note.txt").write_text("text")
    (work / "type.yaml").write_text("method: fixmatch\nsteps: many\n")
    (work / "key.yaml").write_text("method: fixmatch\nstepz: 5\n")
    (work / "list.yaml").write_text("- 1\n")
    (work / "broken.yaml").write_text("steps: [1\n")
    (work / "epochs.yaml").write_text("method: byol\nepochs: 9\n")
    (work / "few.yaml").write_text("recipe: byol_cifar10\nepochs: few\n")
    (work / "null.yaml").write_text("method: fixmatch\ndata: null\n")
    (work / "nan.yaml").write_text("method: fixmatch\nmomentum: .nan\n")
    return work


def run(capsys, *arguments):
    """Exit code, standard output and standard error of the command line within this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


FIXMATCH = ("train", "fixmatch", "--data", "digits", *QUICK, "--steps", "3", "--out", "{work}/new")
FOLDER = ("train", "fixmatch", "--data", "folder", "--steps", "1", "--network", "small", "--out", "{work}/new")
RUN = "{work}/run/last.ckpt"

BAD = {
    # what the arguments are: what the line says
    ("nonsense",): "argument COMMAND: invalid choice: 'nonsense'",
    ("train",): "which method? spatial-ensemble train METHOD",
    ("train", "fixmach"): "method 'fixmach' is not known",
    ("train", "os.path.join"): "is not a class derived from spatial_ensemble.methods.Method",
    ("train", "fixmatch", "--data", "digit"): "unknown data set 'digit'",
    ("train", "fixmatch", "digits"): "unrecognized arguments: digits",
    (*FIXMATCH, "--stepps", "3"): "unrecognized arguments: --stepps 3",
    (*FIXMATCH, "--thresh", "0.5"): "unrecognized arguments: --thresh 0.5",
    (*FIXMATCH, "--steps"): "--steps: expected one argument",
    (*FIXMATCH, "--steps", "0"): "--steps must be at least 1, got 0",
    (*FIXMATCH, "--steps", "-3"): "--steps must be at least 1, got -3",
    (*FIXMATCH, "--steps", "2.5"): """Parser key "steps": Expected a <class 'int'>. Got value: 2.5""",
    (*FIXMATCH, "--labels", "25"): "25 labels cannot be shared out evenly over 10 classes",
    (*FIXMATCH, "--labels", "50000"): "at most",
    (*FIXMATCH, "--labels", "-10"): "--labels must be at least 1, got -10",
    (*FIXMATCH, "--batch-size", "0"): "--batch-size must be at least 1, got 0",
    (*FIXMATCH, "--momentum", "1.5"): "momentum must be a number in [0, 1], got 1.5",
    (*FIXMATCH, "--preserve-prob", "nan"): """Parser key "preserve_prob": Expected a <class 'float'>. Got value: nan""",
    (*FIXMATCH, "--preserve_prob", "-0.1"): "preserve_prob must be a number in [0, 1], got -0.1",
    (*FIXMATCH, "--unit", "filter"): "['layer', 'tensor', 'channel', 'element']. Got value: filter",
    (*FIXMATCH, "--smoothing", "ema"): "'tma-matched', 'se-matched', 'every']. Got value: ema",
    (*FIXMATCH, "--labels-from", "nobody"): "['teacher', 'student']. Got value: nobody",
    (*FIXMATCH, "--threshold", "1.5"): "threshold 1.5",
    (*FIXMATCH, "--network", "resnet0"): "network 'resnet0' is not known",
    (*FIXMATCH, "--seed", "-1"): "--seed must be at least 0, got -1",
    (*FIXMATCH, "--lr", "0"): "--lr must be a positive number, got 0.0",
    (*FIXMATCH, "--image-size", "-8"): "--image-size must be at least 1, got -8",
    (*FIXMATCH, "--path", "{work}"): "digits is built in and takes no path",
    (*FIXMATCH, "--config", "{work}/missing.yaml"): "cannot read the configuration",
    (*FIXMATCH, "--config", "{work}/type.yaml"): "Expected a <class 'int'>. Got value: many",
    (*FIXMATCH, "--config", "{work}/key.yaml"): "does not accept option 'stepz'",
    (*FIXMATCH, "--config", "{work}/list.yaml"): "must hold lines of the form name: value",
    (*FIXMATCH, "--config", "{work}/broken.yaml"): "cannot read the configuration",
    (*FIXMATCH, "--config", "{work}/nan.yaml"): "momentum",
    (*FIXMATCH, "--config", "{work}/note.txt"): "must hold lines of the form name: value",
    (*FIXMATCH, "--config"): "--config: expected one argument",
    (*FIXMATCH, "--resume"): "there is no run in",
    (*FIXMATCH, "--out", "{work}/run"): "already holds a run",
    (*FIXMATCH, "--out", "{work}/note.txt"): "note.txt is a file: give a folder",
    (*FIXMATCH, "--out", "{work}/note.txt/run"): "Not a directory",
    (*FIXMATCH, "--out", "/proc/run"): "/proc/run",
    (*FIXMATCH, "--out", "{work}/run", "--resume", "--lr", "0.5"): "has --lr 0.01, not 0.5",
    (*FIXMATCH, "--out", "{work}/run", "--resume", "--steps", "9"): "its schedule depends on the 3 steps",
    ("train", "--recipe", "fixmatch"): "recipe 'fixmatch' is not known: use one of fixmatch_digits, ",
    ("train", "byol", "--recipe", "fixmatch_digits"): "the recipe fixmatch_digits is one for fixmatch, not for byol",
    ("train", "--recipe", "fixmatch_digits", "--epochs", "9"): "the recipe fixmatch_digits is given in steps",
    ("train", "--recipe", "byol_cifar10", "--epochs", "few"): "argument --epochs: invalid int value: 'few'",
    (*FIXMATCH, "--epochs", "9"): "--epochs belongs to a --recipe: use --steps",
    ("train", "--config", "{work}/epochs.yaml"): "--epochs belongs to a --recipe: use --steps",
    ("train", "--config", "{work}/few.yaml"): "--epochs must be int, got 'few'",
    ("train", "--config", "{work}/null.yaml"): "the following arguments are required: train.data",
    (
        "train",
        "test_cli.Named",
    ): "test_cli.Named has an option named 'momentum', which is a setting of every run",
    (*FIXMATCH, "--init", "{work}/missing"): "does not exist",
    ("train", "byol", *FIXMATCH[2:4], "--labels", "20"): "byol learns without labels: leave out --labels",
    ("train", "moco", *FIXMATCH[2:4], "--queue-size", "100"): "queue_size 100 is no multiple of the 128 keys of a step",
    ("train", "fixmatch", *FIXMATCH[2:4], "--batch-size", "1"): "batch size 1 is too small for BatchNorm",
    FOLDER: "--data folder needs --path",
    (*FOLDER, "--path", "{work}/missing"): "no such path",
    (*FOLDER, "--path", "{work}/note.txt"): "is a file",
    (*FOLDER, "--path", "{work}/empty"): "is empty",
    (*FOLDER, "--path", "{work}/hole"): "class 'none' has no image",
    (*FOLDER, "--path", "{work}/broken"): "broken/train/cat/2.png is a broken image",
    (*FOLDER, "--path", "{work}/text"): "text/train/dog/1.png is a broken image",
    (*FOLDER, "--path", "{work}/one"): "one class",
    (*FOLDER, "--path", "{work}/pets", "--labels", "10"): "at most 8 labels",
    ("compare", "--seeds", "0", "--out", "{work}/new"): "--seeds must be at least 1",
    ("compare", "--workers", "0", "--out", "{work}/new"): "--workers must be at least 1",
    ("compare", "--smoothings", "ema", "--out", "{work}/new"): "ema",
    ("compare", "--labels", "25", "--out", "{work}/new"): "25 labels cannot be shared out evenly",
    ("compare", "--out", "{work}/note.txt"): "is a file",
    ("evaluate", "--data", "digits"): "checkpoint",
    ("evaluate", "{work}/missing.ckpt", "--data", "digits"): "does not exist",
    ("evaluate", "{work}/run", "--data", "digits"): "is a folder, not a checkpoint",
    ("evaluate", "{work}/short.ckpt", "--data", "digits"): "cut short",
    ("evaluate", "{work}/empty.ckpt", "--data", "digits"): "cut short",
    ("evaluate", "{work}/text.ckpt", "--data", "digits"): "is not a checkpoint",
    ("evaluate", "{work}/foreign.ckpt", "--data", "digits"): "is not a checkpoint of spatial-ensemble",
    ("evaluate", RUN, "--data", "digits", "--network", "tutor"): "invalid choice: 'tutor'",
    ("evaluate", RUN, "--data", "digits", "--protocol", "guess"): "invalid choice: 'guess'",
    ("evaluate", RUN, "--data", "folder", "--path", "{work}/pets"): "images of 1 channel(s), folder has 3",
    ("export", RUN): "out",
    ("export", RUN, "{work}/missing/model.safetensors"): "no folder",
    ("export", RUN, "{work}/empty"): "is a folder",
    ("export", RUN, "/proc/model.safetensors"): "/proc/",
    ("export", "{work}/short.ckpt", "{work}/model.safetensors"): "cut short",
    ("predict", RUN): "images",
    ("predict", RUN, "{work}/missing.png"): "no such image or folder",
    ("predict", RUN, "{work}/note.txt"): "note.txt is a broken image",
    ("predict", RUN, "{work}/empty"): "no image in",
    ("predict", RUN, "{work}/text"): "text/train/dog/1.png is a broken image",
    ("predict", RUN, "{work}/pets", "--device", "abacus"): "invalid choice: 'abacus'",
}


@dataclass(frozen=True)
class NamedOptions:
    momentum: float = 0.5


class Named(FixMatch):
    Options = NamedOptions


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "arguments, message", BAD.items(), ids=lambda value: " ".join(value) if value is tuple else None
)
def test_a_mistake_gives_one_line_and_code_2(work, capsys, arguments, message):
    before = contents(work)
    code, out, err = run(capsys, *(argument.format(work=work) for argument in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith("spatial-ensemble: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert message in err
    assert contents(work) == before, "nothing is written, and nothing is damaged"


def program(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((*FOLDER, "--path", "{work}/broken"), "2.png is a broken image"),
        (("predict", "{work}/short.ckpt", "{work}/pets"), "cut short"),
    ],
)
def test_a_mistake_gives_one_line_in_a_process_of_its_own(work, arguments, message):
    done = program("-m", "spatial_ensemble.cli", *(argument.format(work=work) for argument in arguments))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("spatial-ensemble: error: ")
    assert message in done.stderr


def test_without_the_extra_packages_it_says_what_to_install():
    """As after `pip install -e .` alone: nothing but torch can be imported."""
    done = program(
        "-c",
        "import sys\n"
        "for name in ('jsonargparse', 'yaml', 'lightning', 'torchvision', 'sklearn'): sys.modules[name] = None\n"
        "from spatial_ensemble.cli import main\n"
        "for arguments in (['train', 'fixmatch'], ['compare'], ['predict', 'a', 'b']): assert main(arguments) == 2\n",
    )
    assert done.returncode == 0
    assert (
        done.stderr.count("\n") == done.stderr.count("pip install -e '.[train]' in a clone of spatial-ensemble\n") == 3
    )


HEAVY = ("lightly", "lightning", "matplotlib", "numba", "rich", "scipy", "sklearn", "timm", "torch", "torchvision")
IMPORTED = """
import sys
from spatial_ensemble.cli import main
code = main(sys.argv[1:])
print("imported:", *sorted(set(sys.modules) & set({heavy})))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "code, heavy, commands",
    [
        (0, [], ["--help", "--version", "train --help", "train dino --help", "train --list", "compare --help"]),
        (0, [], ["train byol --recipe byol_cifar10 --print-config", "evaluate --help", "predict --help"]),
        (2, [], ["nonsense", "train", "train fixmatch --stepps 3", "train fixmatch --steps 2.5", "compare --lr 0"]),
        (2, [], ["train fixmach", "train --recipe nothing", "train --config /nowhere", "train fixmatch --threshold 2"]),
        (2, [], ["compare --smoothings ema", "compare --arm fast", "compare --arm fast:steps=0"]),
        (2, ["torch"], ["train fixmatch --data digit", "train fixmatch --data folder --path /nowhere"]),
        (2, ["torch"], ["train fixmatch --network resnet0", "train fixmatch --init /nowhere"]),
        (2, ["torch"], ["train byol --labels 20", "compare --method dino --labels 20"]),
        (2, ["torch"], ["compare --data digit", "compare --data folder --path /nowhere"]),
        (2, ["torch"], ["train fixmatch --resume --out /nowhere", "compare --network resnet0"]),
        (2, ["torch"], ["evaluate /nowhere", "export /nowhere /nowhere", "predict /nowhere /nowhere"]),
    ],
    ids=str,
)
def test_what_each_command_has_imported_when_it_ends(code, heavy, commands):
    """A mistake is reported before anything is imported that is not needed to find it."""
    for command in commands:
        done = program("-c", IMPORTED.format(heavy=HEAVY), *command.split())
        assert (done.returncode, done.stdout.splitlines()[-1].split()[1:]) == (code, heavy), (command, done.stderr)


def test_the_help_of_the_program_and_of_each_command(capsys):
    code, overview, _ = run(capsys, "--help")
    assert code == 0
    assert run(capsys)[1] == overview
    for command in ("compare", "train", "evaluate", "export", "predict"):
        assert command in overview
        code, out, err = run(capsys, command, "--help")
        assert code == 0 and err == ""
        assert out.startswith(f"usage: spatial-ensemble {command}")
    out = run(capsys, "train", "fixmatch", "--help")[1]
    assert "--preserve-prob" in out and "--labels-from" in out and "--threshold" in out
    assert "_prob" not in out.replace("preserve_prob;", "")


def test_the_list_of_recipes(capsys):
    code, out, err = run(capsys, "train", "--list")
    assert (code, err) == (0, "")
    assert "fixmatch_cifar10 " in out and "byol_imagenet " in out
    _, out, _ = run(
        capsys, "train", "--recipe", "byol_imagenet", "--epochs", 100, "--smoothing", "tma", "--print-config"
    )
    config = yaml.safe_load(out)
    assert (config["method"], config["smoothing"], config["steps"]) == ("byol", "tma", 100 * 1_281_167 // 256)
    assert (config["preserve_prob"], config["hidden_dim"]) == (0.7, 4096)


def test_the_version(capsys):
    assert run(capsys, "--version") == (0, "spatial-ensemble 0.1.0\n", "")


def test_both_spellings_and_the_methods_own_options(capsys):
    start = ("train", "fixmatch", "--threshold", "0.9")
    _, first, _ = run(capsys, *start, "--preserve-prob", "0.3", "--labels-from=student", "--print-config")
    _, second, _ = run(capsys, *start, "--preserve_prob=0.3", "--labels_from", "student", "--print_config")
    assert first == second
    config = yaml.safe_load(first)
    assert (config["preserve_prob"], config["labels_from"], config["threshold"]) == (0.3, "student", 0.9)


def test_flags_win_over_the_file_wherever_they_stand(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("method: fixmatch\nsteps: 7\nlr: 1e-3\nthreshold: 0.8\n")
    for arguments in (
        ["--steps", "5", "--config", tmp_path / "a.yaml"],
        ["--config", tmp_path / "a.yaml", "--steps=5"],
    ):
        code, out, _ = run(capsys, "train", *arguments, "--print-config")
        config = yaml.safe_load(out)
        assert code == 0
        assert (config["steps"], config["lr"], config["threshold"], config["method"]) == (5, 0.001, 0.8, "fixmatch")


def test_a_recipe_and_resume_may_stand_in_the_file(work, capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("recipe: byol_imagenet\nepochs: 100\nlr: 0.25\n")
    _, flags, _ = run(capsys, "train", "--recipe", "byol_imagenet", "--epochs", "100", "--lr", "0.25", "--print-config")
    assert run(capsys, "train", "--config", tmp_path / "recipe.yaml", "--print-config") == (0, flags, "")
    (tmp_path / "resume.yaml").write_text(f"resume: true\nout: {work / 'run'}\n")
    code, said, err = run(capsys, "train", "--config", tmp_path / "resume.yaml")
    assert (code, err) == (0, "") and "is finished: no step is left" in said


VERSION_0_1 = """
method: moco
data: digits
path: null
labels: null
init: null
momentum: 0.9
momentum_schedule: warmup
buffers: average
seed: 3
steps: 8
lr: 1.0e-05
clip_grad: null
checkpoint_every: 400
queue_size: 256
symmetric: true
"""


def test_a_file_of_version_0_1_is_read_or_refused_by_the_name_that_is_wrong(capsys, tmp_path):
    (tmp_path / "old.yaml").write_text(VERSION_0_1)
    code, out, err = run(capsys, "train", "--config", tmp_path / "old.yaml", "--print-config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(VERSION_0_1).items() <= yaml.safe_load(out).items()
    for line, message in (("threshold: 0.5", "does not accept option 'threshold'"), ("steps: 8.5", 'key "steps"')):
        (tmp_path / "bad.yaml").write_text(f"{VERSION_0_1}{line}\n")
        code, out, err = run(capsys, "train", "--config", tmp_path / "bad.yaml")
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err


@pytest.mark.parametrize("arguments", ["--version", "train --list"])
def test_a_reader_that_has_enough_gets_no_complaint(tmp_path, arguments):
    command = f"{sys.executable} -m spatial_ensemble.cli {arguments}"
    done = subprocess.run(["sh", "-c", f"(sleep 1; {command}; echo $? >{tmp_path}/code) | true"], capture_output=True)
    assert (done.stdout, done.stderr, (tmp_path / "code").read_text()) == (b"", b"", "1\n")


def test_ctrl_c_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # where tests run in the background it is ignored
    flags = [*QUICK, "--steps", "5000", "--checkpoint-every", "1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "spatial_ensemble.cli", "train", "fixmatch", *flags],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    )
    while not (out / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = f"spatial-ensemble: interrupted; --resume --out {out} continues from its last checkpoint\n"
    assert (process.communicate()[1], process.returncode) == (message, 130)


def test_a_printed_configuration_is_read_back_the_same(capsys, tmp_path):
    _, first, _ = run(capsys, "train", "fixmatch", "--momentum", "0.9", "--print-config")
    (tmp_path / "a.yaml").write_text(first)
    for command in ("train", "compare"):
        assert run(capsys, command, "--config", tmp_path / "a.yaml", "--print-config")[1] == first


def test_the_whole_path_on_a_folder(work, capsys, tmp_path):
    out, model = tmp_path / "run", tmp_path / "model.safetensors"
    flags = ["--labels", 4, "--steps", 2, "--network", "small", "--batch-size", 2, "--smoothing", "se", "--out", out]
    code, said, err = run(capsys, "train", "fixmatch", "--data", "folder", "--path", work / "pets", *flags)
    assert (code, err) == (0, "")
    assert said.startswith("teacher ")
    code, said, err = run(capsys, "evaluate", out / "last.ckpt", "--data", "folder", "--path", work / "pets")
    assert code == 0 and said.startswith("accuracy of the teacher: ")
    assert run(capsys, "export", out / "last.ckpt", model, "--network", "student")[0] == 0
    with safe_open(model, "pt") as file:
        assert file.metadata()["classes"] == '["cat", "dog"]'
    code, said, _ = run(capsys, "predict", out / "last.ckpt", work / "pets" / "test")
    assert code == 0
    assert [line.split("\t")[1] in ("cat", "dog") for line in said.splitlines()] == [True] * 8


def test_images_without_a_label_alone_are_learnt_from_and_judged_elsewhere(work, capsys, tmp_path):
    images, out = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    (images / "unlabelled").symlink_to(work / "pets" / "train")
    bare = ["--data", "folder", "--path", images]
    flags = ["--network", "small", "--batch-size", 4, "--steps", 2]
    code, said, err = run(capsys, "train", "byol", *bare, *flags, "--out", out)
    assert (code, said, err) == (
        0,
        f"trained, and not evaluated, since no image has a label: {out / 'last.ckpt'}\n",
        "",
    )
    code, said, _ = run(capsys, "evaluate", out / "last.ckpt", "--data", "folder", "--path", work / "pets")
    assert code == 0 and said.startswith("knn of the teacher: ")
    for message, command in (
        (f"no image in {images} has a label to evaluate with", ["evaluate", out / "last.ckpt"]),
        (f"no image in {images} has a label to compare by", ["compare", "--method", "byol", *bare, *flags]),
        ("fixmatch learns from labels, and no image has one", ["train", "fixmatch", *bare, *flags]),
    ):
        code, said, err = run(capsys, *command, *(["--out", tmp_path / "no"] if command[0] != "evaluate" else []))
        assert (code, said) == (2, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_broken_images_are_skipped_and_counted_when_asked(work, capsys, tmp_path, caplog):
    flags = ["--skip-broken", "--labels", 4, "--batch-size", 2, "--out", tmp_path / "run"]
    code, _, _ = run(capsys, *FOLDER[:-2], "--path", work / "broken", *flags)
    assert code == 0
    assert "skipped 1 of 16 images" in caplog.text
    code, said, _ = run(capsys, "predict", tmp_path / "run" / "last.ckpt", work / "broken", "--skip-broken")
    assert code == 0
    assert len(said.splitlines()) == 15


@pytest.mark.parametrize("protocol", ["accuracy", "knn", "linear", "linear-paper"])
def test_the_protocols_of_evaluation(work, capsys, protocol):
    code, said, _ = run(capsys, "evaluate", work / "run" / "last.ckpt", "--protocol", protocol, "--network", "student")
    assert code == 0
    assert said.startswith(f"{protocol} of the student: ")
    assert 5 < float(said.split()[-2]) <= 100


def test_resume_takes_its_configuration_from_the_run(work, capsys):
    before = contents(work / "run")
    code, said, err = run(capsys, "train", "--resume", "--out", work / "run")
    assert (code, err) == (0, "")
    assert said.startswith(f"the run in {work / 'run'} is finished: no step is left\n")
    assert contents(work / "run") == before


def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    """A process gets SIGKILL at some moment, another one resumes: the same bits."""
    flags = ["train", "fixmatch", *QUICK, "--steps", "40", "--eval-every", "10", "--checkpoint-every", "1", "--out"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the number of threads of the other process
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        out = tmp_path / "killed"
        process = subprocess.Popen([sys.executable, "-m", "spatial_ensemble.cli", *flags, str(out)])
        while not (out / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert main(["train", "--resume", "--out", str(out)]) == 0
        assert main([*flags, str(tmp_path / "straight")]) == 0
    finally:
        torch.set_num_threads(threads)
    first, second = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("straight", "killed"))
    for part in ("method", "teacher"):
        for name, value in first[part].items():
            assert value == second[part][name] if isinstance(value, dict) else torch.equal(value, second[part][name])
    assert (out / "log.csv").read_bytes() == (tmp_path / "straight" / "log.csv").read_bytes()
