"""Dying headers: a reader that one file ends with its process; imports little, so that processes start quickly."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from headctssl.dataset.image_io import ImageHeader, read_header


def die_of_case_3(paths: Sequence[Path]) -> list[ImageHeader]:
    """Read headers as ever, but for one file, which ends the process."""
    if any(path.name == "case7_03.nii.gz" for path in paths):
        os.kill(os.getpid(), signal.SIGKILL)
    return [read_header(path) for path in paths]
