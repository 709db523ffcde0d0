"""Fixtures that several stages share: data roots, the folder of real CT files, commands as users type them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from headctssl.paths import ROOT_KINDS


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three empty data roots under one temporary folder."""
    for kind in ROOT_KINDS:
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"headctssl_{kind}", str(tmp_path / kind))
    return tmp_path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real CT files; the test is skipped where it is not given."""
    folder = os.environ.get("headctssl_test_data")
    if not folder:
        pytest.skip("headctssl_test_data is not set: no folder of real CT files")
    return Path(folder)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `headct NAME ...` in this process; gives exit code, stdout and stderr."""
    from headctssl.cli.main import main

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = int(stop.code or 0) if not isinstance(stop.code, str) else 2
        out, err = capsys.readouterr()
        return code, out, err

    return run
