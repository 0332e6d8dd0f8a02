"""trainable_only: what is frozen is the student's own, and everything else as in a teacher that copied it all."""

import copy
import pickle

import pytest
import torch
from smoothing.students import assert_equal
from torch import Tensor, nn

from spatial_ensemble import Teacher, distance, fraction_replaced, spatial_temporal_smoothing, temporal_moving_average
from spatial_ensemble.smoothing import kernels
from spatial_ensemble.smoothing.units import UNITS

STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5)


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it, in the adapter's dtype."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x.to(self.down.weight.dtype))).to(x.dtype)


class Student(nn.Module):
    """Adapters; a tied frozen embedding, a frozen BatchNorm with moving statistics, an LSTM frozen in part."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(11, 6).requires_grad_(False)
            self.first, self.second = Adapted(6, 6), Adapted(6, 6)
            self.norm = nn.BatchNorm1d(6).requires_grad_(False)
            self.memory = nn.LSTM(6, 6).requires_grad_(False)
            self.memory.bias_hh_l0.requires_grad_(True)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.memory(self.norm(self.first(self.embed(x))))[0]))


TRAINED = {
    *(f"{layer}.{part}.weight" for layer in ("first", "second") for part in ("down", "up")),
    "memory.bias_hh_l0",
}
BUFFERS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
INPUT = torch.arange(5)


def train(student: nn.Module, steps: range) -> None:
    """A made-up training: its updates depend on the step alone."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter.dtype))
        student(torch.randint(11, (7,), generator=draw))


def own(teacher: Teacher) -> dict[str, Tensor]:
    named = [*teacher.module.named_parameters(), *teacher.module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named if name in TRAINED | BUFFERS}


def shared(teacher: Teacher, student: nn.Module) -> bool:
    theirs = dict(student.named_parameters(remove_duplicate=False))
    return all(
        (p is theirs[n]) == (n not in TRAINED) for n, p in teacher.module.named_parameters(remove_duplicate=False)
    )


@pytest.mark.parametrize("kernel", ["plain", "chosen"])
@torch.no_grad()  # with gradients LSTMs round otherwise
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("buffers", ["average", "copy", "follow", "keep"])
def test_it_smooths_and_answers_as_a_teacher_of_copies(unit, buffers, kernel, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(kernels, "_cpu", lambda: None)
    if buffers == "follow":
        unit = "layer"
    student = Student()
    options = {"unit": unit, "buffers": buffers, "seed": 4}
    whole, teacher = Teacher(student, STS, **options), Teacher(student, STS, trainable_only=True, **options)
    for step in range(4):
        train(student, range(step, step + 1))
        whole.update(student), teacher.update(student)
        assert torch.equal(teacher(INPUT), whole(INPUT))
        assert not torch.equal(teacher(INPUT), student.eval()(INPUT))
        student.train()
    assert_equal(own(teacher), own(whole))
    assert shared(teacher, student)
    assert {name for name, p in student.named_parameters() if p.requires_grad} == TRAINED
    with teacher.swap(student):
        assert torch.equal(student.eval()(INPUT), whole(INPUT))
    teacher.copy_to(student)
    assert torch.equal(student(INPUT), whole(INPUT))


def test_only_what_it_owns_is_measured_and_hashed():
    student = Student()
    teacher = Teacher(student, STS, trainable_only=True)
    train(student, range(2))
    teacher.update(student)
    assert teacher.mask_layouts().keys() == teacher.age().keys() == TRAINED
    assert distance(teacher, student).keys() == TRAINED | BUFFERS - {"norm.num_batches_tracked"}
    assert 0 <= fraction_replaced(teacher) <= 1
    before = teacher.fingerprint()
    student.embed.weight.data.add_(1)
    assert teacher.fingerprint() == before
    teacher.module.first.up.weight.add_(1)
    assert teacher.fingerprint() != before


@pytest.mark.parametrize("owned", [False, True])
def test_its_state_holds_nothing_frozen_and_loads_strictly(owned):
    def build(seed: int) -> tuple[Student, Teacher, nn.Module]:
        student = Student()
        teacher = Teacher(student, STS, trainable_only=True, seed=seed)
        return student, teacher, nn.ModuleDict({"ema": teacher, "other": nn.Linear(1, 1)}) if owned else teacher

    (student, teacher, saved), (other_student, other, loaded) = build(1), build(2)
    train(student, range(3))
    teacher.update(student)
    frozen = other_student.embed.weight.clone()
    state = saved.state_dict()
    prefix = "ema." if owned else ""
    rest = {"other.weight", "other.bias"} if owned else set()
    assert state.keys() == {prefix + f"module.{name}" for name in TRAINED | BUFFERS} | {prefix + "_extra_state"} | rest
    loaded.load_state_dict(state)
    assert (other.step, other.seed) == (1, 1) and other.fingerprint() == teacher.fingerprint()
    assert torch.equal(other_student.embed.weight, frozen) and shared(other, other_student)
    assert set(state) == set(saved.state_dict())  # loading leaves the caller's dict alone
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict({n: v for n, v in state.items() if not n.endswith("first.up.weight")})
    start = copy.deepcopy(student.state_dict())
    for each, pupil in ((teacher, student), (other, other_student)):
        pupil.load_state_dict(start)
        train(pupil, range(3, 6))
        each.update(pupil)
    assert other.fingerprint() == teacher.fingerprint()


@pytest.mark.parametrize("saved_by", [False, True])
def test_a_state_of_the_other_kind_is_refused_and_the_students_weights_stay(saved_by):
    student = Student()
    state = Teacher(Student(1), STS, trainable_only=saved_by).state_dict()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=rf"the saved teacher has trainable_only={saved_by}, this one {not saved_by}"):
        Teacher(student, STS, trainable_only=not saved_by).load_state_dict(state)
    assert_equal(dict(student.state_dict()), dict(before))


def test_a_frozen_parameter_that_is_trained_later_is_refused_by_name():
    student = Student()
    teacher = Teacher(student, STS, trainable_only=True)
    teacher.update(student)
    before = own(teacher)
    train(student, range(1))
    student.norm.weight.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"'norm\.weight' was frozen .* and now requires a gradient: build a new Teach"
    ):
        teacher.update(student)
    assert_equal(own(teacher), before)
    assert teacher.step == 1


def test_a_parameter_that_is_frozen_later_is_smoothed_on():
    student = Student()
    teacher = Teacher(student, temporal_moving_average(0.5), trainable_only=True)
    before = teacher.module.first.up.weight.clone()
    train(student, range(1))
    student.first.up.requires_grad_(False)
    teacher.update(student)
    assert torch.equal(teacher.module.first.up.weight, before.lerp(student.first.up.weight, 0.5))


@pytest.mark.parametrize("part", [copy.deepcopy, lambda teacher: pickle.loads(pickle.dumps(teacher))])
def test_a_copy_shares_again_from_its_next_update_on(part):
    student = Student()
    teacher = Teacher(student, STS, trainable_only=True)
    train(student, range(1))
    teacher.update(student)
    other = part(teacher)
    assert torch.equal(other(INPUT), teacher(INPUT))
    train(student, range(1, 2))
    teacher.update(student), other.update(student)
    assert torch.equal(other(INPUT), teacher(INPUT))
    assert shared(other, student)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_only_what_it_owns_is_searched_for_non_finite_values(policy):
    student = Student()
    teacher = Teacher(student, STS, trainable_only=True, on_nonfinite=policy)
    student.embed.weight.data[0] = torch.nan  # is the teacher's own too
    teacher.update(student)
    assert (teacher.step, teacher.skipped) == (1, 0)
    student.first.up.weight.data[0] = torch.nan
    if policy == "raise":
        with pytest.raises(ValueError, match=r"'first\.up\.weight' is non-finite at step 1"):
            teacher.update(student)
    else:
        teacher.update(student)
        assert (teacher.step, teacher.skipped) == (1, 1)


def test_compiled_it_shares_and_smooths_alike():
    plain, student = Student(), Student()
    compiled = torch.compile(student, backend="eager")
    expected, teacher = (Teacher(each, STS, trainable_only=True) for each in (plain, compiled))
    for each, pupil, wrapped in ((expected, plain, plain), (teacher, student, compiled)):
        train(pupil, range(2))
        each.update(wrapped)
    assert teacher.fingerprint() == expected.fingerprint() and shared(teacher, student)


def test_frozen_weights_that_are_replaced_are_followed():
    student, teacher = Student(), None
    teacher = Teacher(student, STS, trainable_only=True)
    teacher.update(student)
    student.load_state_dict(Student(1).state_dict(), assign=True)
    teacher.update(student)
    assert shared(teacher, student)


def test_a_parent_that_moves_both_moves_what_they_share_once():
    student = Student()
    parent = nn.ModuleDict({"student": student, "teacher": Teacher(student, STS, trainable_only=True)}).double()
    parent["teacher"].update(student)
    assert shared(parent["teacher"], student)
    assert {p.dtype for p in parent.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_teacher_of_a_student_in_half_precision_answers_and_comes_back_exact(dtype):
    student = Student().to(dtype)
    student.memory.requires_grad_(False)  # torch's LSTM takes no mixed dtypes
    teacher = Teacher(student, temporal_moving_average(0.9), trainable_only=True, dtype=torch.float32)
    train(student, range(1))
    teacher.update(student)
    assert {n for n, p in teacher.module.named_parameters() if p.dtype == torch.float32} == TRAINED - {
        "memory.bias_hh_l0"
    }
    assert teacher.module.norm.running_mean.dtype == dtype  # beside frozen weights, which it must fit
    assert teacher(INPUT).dtype == dtype
    mine, theirs = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.module.state_dict())
    with teacher.swap(student):
        assert torch.equal(student.first.up.weight, theirs["first.up.weight"].to(dtype))
    assert_equal(dict(student.state_dict()), dict(mine))
    assert_equal(dict(teacher.module.state_dict()), dict(theirs))


def test_a_frozen_parameter_in_the_memory_of_a_trainable_one_is_copied():
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[1].weight = nn.Parameter(student[0].weight.detach(), requires_grad=False)
    student[1].bias.requires_grad_(False)
    teacher = Teacher(student, temporal_moving_average(0.5), trainable_only=True)
    before = teacher.module[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1)
    assert torch.equal(teacher.module[1].weight, before)
    assert teacher.module[1].bias is student[1].bias


def test_what_cannot_be_shared_is_refused():
    student = Student()
    with pytest.raises(ValueError, match=r"shares the frozen '.*' on cpu with the student: leave out device='meta'"):
        Teacher(student, STS, trainable_only=True, device="meta")
    Teacher(student, STS, trainable_only=True, device="cpu")
    with pytest.raises(ValueError, match="trainable_only=True copies the student itself, and takes no module"):
        Teacher(student, STS, trainable_only=True, module=Student())
    with pytest.raises(ValueError, match="no parameter of the student requires a gradient"):
        Teacher(Student().requires_grad_(False), STS, trainable_only=True)


def test_a_peft_teacher_costs_what_its_adapters_cost():
    peft = pytest.importorskip("peft")
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    student = peft.get_peft_model(network, peft.LoraConfig(target_modules=["0", "2"], r=2))
    whole, teacher = Teacher(student, STS), Teacher(student, STS, trainable_only=True)
    x = torch.ones(1, 64)
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(step * parameter.requires_grad)
        whole.update(student), teacher.update(student)
        assert torch.equal(teacher(x), whole(x))
    adapters = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert sum(value.numel() for value in teacher.state_dict().values()) == adapters + 16
