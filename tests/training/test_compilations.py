"""A real run compiles each program once: nothing that comes later makes it compile again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny import OPTIMIZED

CHILD = Path(__file__).parent / "counted_run.py"


@pytest.mark.parametrize("packing", ["tree", "pair"])
def test_nothing_compiles_after_the_first_pass(tmp_path, packing):
    command = [sys.executable, str(CHILD), str(tmp_path / "run"), packing]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | OPTIMIZED)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout.splitlines()[-1])
    assert len(stages) == 2
    for before_step, digests in zip(stages, (2, 0), strict=True):
        assert len(before_step) >= 8
        assert before_step[1] > before_step[0]  # the step itself: the count counts
        # the run's first save, after step 2, brings the digests of its two items; what comes later brings nothing
        assert before_step[2] == before_step[-1] == before_step[1] + digests, before_step
