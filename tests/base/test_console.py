"""Console: tables stay readable on a narrow terminal, and nothing is printed that no user can act on."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from headctssl.cli.main import exit_code_of
from headctssl.console import table


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The lines of a table of three columns on a terminal of 80 columns."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [(name, "40 x 56 x 48 voxels of 4.15 mm", "head 166 x 226 x 183 mm"), ("windows", "brain", "inside")]
    table("plans", ("decision", "value", "because"), rows)
    return capsys.readouterr().out.splitlines()


def test_a_long_name_leaves_room_for_the_other_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(
        capsys, monkeypatch, "input of vit_tiny, vit_s, vit_b, vit_l, resenc_s, primus_s, unet3d, segresnet"
    )
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("because", "voxels", "head", "segresnet", "brain", "inside"):
        assert word in text
    assert len(lines) < 12


def test_a_short_name_stays_on_its_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("steps between looks" in line for line in printed(capsys, monkeypatch, "steps between looks"))


def test_commands_do_not_pass_on_that_timm_uses_what_torch_gave_up(recwarn: pytest.WarningsRecorder) -> None:
    def work() -> int:
        warnings.warn("`torch.jit.interface` is deprecated. Please use `torch.compile` instead.", FutureWarning, 1)
        warnings.warn("something else is deprecated", FutureWarning, 1)
        return 0

    assert exit_code_of("pretrain", work) == 0
    assert [str(warning.message) for warning in recwarn] == ["something else is deprecated"]


def test_reports_of_datasets_need_no_torch() -> None:
    """headct_convert ends in such a page; importing torch takes longer than writing it."""
    code = "import sys, headctssl.reporting.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
