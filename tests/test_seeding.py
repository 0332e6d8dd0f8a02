"""Seeds by purpose."""

import ast
from pathlib import Path

import torch

from spatial_ensemble import seeding
from spatial_ensemble.seeding import derive_seed, generator


def test_seeds_are_the_same_in_every_version():
    assert derive_seed(0) == 2631537505891389924
    assert derive_seed(3, "order", 7) == 8167213760485413463


def test_every_part_of_a_purpose_changes_the_seed():
    seeds = {derive_seed(*what) for what in [(0,), (1,), (0, "a"), (0, "a", 1), (0, "a", "1"), (0, "a", 2), (0, "a1")]}
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    assert torch.rand(3, generator=generator(0, "a")).equal(torch.rand(3, generator=generator(0, "a")))
    assert torch.get_rng_state().equal(before)


def test_the_module_imports_the_standard_library_alone():
    body = ast.parse(Path(seeding.__file__).read_text()).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    assert "hashlib" in names and "torch" not in names
