"""Encoders page: its table is the code's."""

from __future__ import annotations

import shutil
from pathlib import Path

import headctssl
from headctssl.families import FAMILIES
from headctssl.reporting.encoders_page import write_encoders_table

PAGE = Path(headctssl.__file__).parent.parent / "documentation" / "encoders.md"


def test_the_page_is_as_generated(tmp_path: Path) -> None:
    copy = tmp_path / "encoders.md"
    shutil.copy(PAGE, copy)
    write_encoders_table(copy)
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), "run make docs"


def test_every_family_is_described_as_it_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    described = {row[0]: row for row in rows if row[0] in FAMILIES and len(row) == 7}
    assert set(described) == set(FAMILIES)
    for name, family in FAMILIES.items():
        _, masked, keep, _, pyramid, _, thin = described[name]
        assert (masked == "mask token") == (keep == "yes") == (pyramid == "no") == family.drops_tokens
        assert (thin == "yes") == family.thin_tokens
        assert f"**{name}**" in text
