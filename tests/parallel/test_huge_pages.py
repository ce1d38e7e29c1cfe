"""A command that starts again with huge pages keeps its arguments, its process and what the user has set."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from empathax.parallel.huge_pages import restart_with_huge_pages
if os.environ.get("FIRST_PID") is None:
    os.environ["FIRST_PID"] = str(os.getpid())
restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], os.environ["FIRST_PID"] == str(os.getpid()), sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("glibc.malloc.perturb=7", "glibc.malloc.perturb=7:glibc.malloc.hugetlb=1"),
    ],
)
def test_it_starts_again_once(before, after):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": before} if before else {}
    command = [sys.executable, "-c", PROGRAM, "--a=1 2", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == f"{after} True ['--a=1 2', 'b']", done.stderr
