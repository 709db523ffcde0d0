"""Process memory: arrays made and freed again take no new pages from the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from headctssl.training.process_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.empty(3 << 20, np.uint8)[::4096] = 1
        np.empty(60 << 20, np.uint8)[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
done = keep_freed_memory()
faults()
print(done, before, faults())
"""


def test_what_was_freed_is_used_again() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout.split()
    assert told[0] == str(platform.libc_ver()[0] == "glibc")  # only glibc has the switches
    if told[0] == "False":
        return
    before, after = int(told[1]), int(told[2])
    # Large arrays may have large pages, so that not every 4 kB fault.
    assert before >= 20
    assert after < before / 10
