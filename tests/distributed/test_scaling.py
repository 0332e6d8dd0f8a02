"""What docs/scaling.md says about sizes that no test machine reaches."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    threads = torch.get_num_threads()
    yield scaling
    torch.set_num_threads(threads)
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_table_in_the_docs_is_what_the_script_computes(scaling: ModuleType):
    assert "\n".join(scaling.arithmetic()) in (ROOT / "docs" / "scaling.md").read_text()
    assert [scaling.parameters(model) for model in scaling.MODELS] == [25_557_032, 1_136_479_232, 6_738_415_616]


def test_one_rank_of_1024_holds_and_updates_its_shard_in_silence(scaling: ModuleType):
    found = scaling.measure("ResNet-50", gpus=1024, updates=1)
    assert found["sent"] == 0
    assert 25_557_032 / 1024 < found["held"] < 3 * 25_557_032 / 1024  # at least one row of each of 161 tensors
    assert found["MiB"] == found["held"] * 4 / 2**20
