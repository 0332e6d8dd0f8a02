"""What importing the mechanism costs."""

import subprocess
import sys

import pytest

import spatial_ensemble
from spatial_ensemble import smoothing


@pytest.mark.parametrize(
    "names",
    [
        "spatial_ensemble",
        "spatial_ensemble.seeding",
        "spatial_ensemble.smoothing.rule",
        "spatial_ensemble.smoothing.schedule",
    ],
)
def test_rule_and_schedules_need_no_torch(names):
    code = f"import sys, {names}; spatial_ensemble.cosine(0.9, 1.0, 5)(2); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("facade", [spatial_ensemble, smoothing])
def test_every_public_name_is_there_and_no_other(facade):
    assert all(getattr(facade, name) is not None for name in facade.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Teachr'"):
        _ = facade.Teachr
