"""Each layout against the objects of the package that defines it; MMEngine's, which is not installed, by its rules."""

import ema_pytorch
import lightning.pytorch as pl
import pytest
import timm.utils
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim import swa_utils

from spatial_ensemble import Teacher, UserError, spatial_temporal_smoothing
from spatial_ensemble.integrations.averaged_model import AveragedModel
from spatial_ensemble.integrations.layouts import from_layout, to_layout
from spatial_ensemble.integrations.timm import ModelEmaV3

STS = spatial_temporal_smoothing(0.9, 0.5)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.fixture
def student() -> nn.Module:
    return network(0)


@pytest.fixture
def teacher(student) -> Teacher:
    teacher = Teacher(network(1), STS)
    for _ in range(5):
        teacher.update(student)
    return teacher


def same(state: dict[str, torch.Tensor], module: nn.Module) -> bool:
    expected = module.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", ["timm", "torch", "ema-pytorch", "lightning", "mmengine"])
def test_round_trip_through_a_file(teacher, student, layout, tmp_path):
    torch.save(to_layout(teacher, student, layout), tmp_path / "there.pt")
    checkpoint = torch.load(tmp_path / "there.pt", weights_only=True)
    again = Teacher(network(2), STS)
    again.module.load_state_dict(from_layout(checkpoint, layout))
    assert same(again.module.state_dict(), teacher.module)


def test_timm_reads_ours_and_we_read_timms(teacher, student, tmp_path):
    from timm.models import load_checkpoint

    torch.save(to_layout(teacher, student, "timm"), tmp_path / "last.pth.tar")
    ema = timm.utils.ModelEmaV3(network(3))
    load_checkpoint(ema.module, tmp_path / "last.pth.tar", use_ema=True)
    assert same(teacher.module.state_dict(), ema.module)

    theirs = {"state_dict": timm.utils.get_state_dict(student), "state_dict_ema": timm.utils.get_state_dict(ema)}
    assert same(from_layout(theirs, "timm"), ema.module)


def test_torch_reads_ours_and_we_read_torchs(teacher, student):
    averaged = swa_utils.AveragedModel(network(3), use_buffers=True)
    averaged.load_state_dict(to_layout(teacher, student, "torch"))
    assert same(teacher.module.state_dict(), averaged.module)
    assert averaged.n_averaged == teacher.step
    assert same(from_layout(averaged.state_dict(), "torch"), averaged.module)


@pytest.mark.parametrize("owner", [nn.Identity(), None], ids=["alone", "owned"])
def test_the_drop_in_replacements_load_the_states_of_torch_and_timm(student, owner):
    ours, theirs = AveragedModel(network(2), smoothing=STS), swa_utils.AveragedModel(network(3), use_buffers=True)
    ema, timms = ModelEmaV3(network(2)), timm.utils.ModelEmaV3(network(3))
    for _ in range(3):
        theirs.update_parameters(student)
        timms.update(student)
    for own, other in ((ours, theirs), (ema, timms)):
        state = other.state_dict()
        if owner is not None:
            own, state = nn.ModuleDict({"ema": own}), {f"ema.{name}": value for name, value in state.items()}
        own.load_state_dict(state)
    assert same(theirs.module.state_dict(), ours.module) and ours.n_averaged == 3
    assert same(timms.module.state_dict(), ema.module)


def test_torch_and_timm_load_the_states_of_the_drop_in_replacements(student):
    ours, theirs = AveragedModel(network(2), smoothing=STS), swa_utils.AveragedModel(network(3))
    ours.update_parameters(student)
    theirs.load_state_dict(to_layout(ours, student, "torch"))
    assert same(ours.module.state_dict(), theirs.module) and theirs.n_averaged == 1
    ema, timms = ModelEmaV3(network(2)), timm.utils.ModelEmaV3(network(3))
    timms.module.load_state_dict(to_layout(ema, student, "timm")["state_dict_ema"])
    assert same(ema.module.state_dict(), timms.module)


@pytest.mark.parametrize("kind", [AveragedModel, ModelEmaV3])
def test_the_drop_in_replacements_load_their_own_states(student, kind):
    options = {"smoothing": STS} if kind is AveragedModel else {}
    ours, again = kind(student, seed=4, **options), kind(network(2), **options)
    ours.update(student)
    again.load_state_dict(ours.state_dict())
    assert (again.step, again.seed) == (1, 4) and again.fingerprint() == ours.fingerprint()


def test_ema_pytorch_reads_ours_and_we_read_its(teacher, student):
    ema = ema_pytorch.EMA(network(3))
    ema.load_state_dict(to_layout(teacher, student, "ema-pytorch"))
    assert same(teacher.module.state_dict(), ema.ema_model)
    assert same(student.state_dict(), ema.online_model)
    assert ema.initted
    assert same(from_layout(ema.state_dict(), "ema-pytorch"), ema.ema_model)


def test_lightning_reads_ours_and_we_read_lightnings():
    class Module(pl.LightningModule):
        def __init__(self, seed):
            super().__init__()
            self.network = network(seed)

    student, module, averaging = Module(0), Module(3), EMAWeightAveraging()
    teacher = Teacher(Module(1), STS)
    teacher.update(student)
    averaging.setup(None, module, "fit")
    averaging.on_load_checkpoint(None, module, to_layout(teacher, student, "lightning"))
    assert same(teacher.module.state_dict(), averaging._average_model.module)
    assert averaging._average_model.n_averaged == teacher.step
    assert same(student.state_dict(), module)

    theirs = {"state_dict": module.state_dict()}
    averaging.on_save_checkpoint(None, module, theirs)
    assert same(from_layout(theirs, "lightning"), averaging._average_model.module)


def test_a_compiled_student_has_the_names_it_was_built_with(teacher, student):
    ema = ema_pytorch.EMA(network(3))
    ema.load_state_dict(to_layout(teacher, torch.compile(student), "ema-pytorch"))
    assert same(student.state_dict(), ema.online_model)


def test_mmengine_finds_the_average_where_its_hook_swaps_it_from(teacher, student):
    checkpoint = to_layout(teacher, student, "mmengine")
    assert same(checkpoint["state_dict"], teacher.module)  # EMAHook swaps the two before it saves ...
    ema_state = checkpoint["ema_state_dict"]
    assert same({name.removeprefix("module."): ema_state[name] for name in ema_state if name != "steps"}, student)
    assert ema_state["steps"] == teacher.step


@pytest.mark.parametrize("layout", ["timm", "torch", "ema-pytorch", "lightning", "mmengine"])
def test_a_checkpoint_without_an_average_is_refused(student, layout):
    with pytest.raises(UserError, match=layout):
        from_layout({"state_dict": student.state_dict()}, layout)


def test_an_unknown_layout_is_refused(teacher, student):
    with pytest.raises(UserError, match=r"ema-pytorch.*'keras'"):
        to_layout(teacher, student, "keras")
    with pytest.raises(UserError, match=r"ema-pytorch.*'keras'"):
        from_layout({}, "keras")
