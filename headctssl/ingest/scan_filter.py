"""Scan filter: an allow-list of (Study Description, KVP, Convolution Kernel), as HeadCT-Foundation chose its scans."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headctssl.dataset.table import read_table
from headctssl.errors import DataError

__all__ = ["ScanFilter", "kernel_parts", "read_scan_filter"]

COLUMNS = ("study_description", "kvp", "convolution_kernel")
"""What a scan is asked for, by the names of cases.csv."""

_HEADINGS = {"studydescription": COLUMNS[0], "kvp": COLUMNS[1], "convolutionkernel": COLUMNS[2]}
_NAMES = {
    "study_description": "Study Description",
    "kvp": "KVP",
    "convolution_kernel": "Convolution Kernel",
}

Triple = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class ScanFilter:
    """An allow-list: a scan passes when its triple is one of the lines."""

    name: str  # of the file
    lines: Mapping[Triple, int]  # triple -> first line of the file that has it

    def decide(self, cells: Mapping[str, str]) -> tuple[bool, str]:
        """Whether a scan passes, and the rule that says so.

        Args:
            cells: `study_description`, `kvp` and `convolution_kernel` as the headers have them.
        """
        unknown = [_NAMES[name] for name in COLUMNS if not cells.get(name, "").strip()]
        if unknown:
            return False, f"{self.name}: {', '.join(unknown)} not known, so no line can allow it."
        triple = _triple(*(cells[name] for name in COLUMNS))
        line = self.lines.get(triple)
        told = f"'{triple[0]}', {triple[1]} kV, kernel {_written(triple[2])}"
        if line is not None:
            return True, f"{self.name}, line {line}: {told}."
        same = [
            what
            for what, alike in (
                ("study description", any(t[0] == triple[0] for t in self.lines)),
                ("KVP", any(t[1] == triple[1] for t in self.lines)),
                ("kernel", any(t[2] == triple[2] for t in self.lines)),
            )
            if not alike
        ]
        why = f"no line has this {' nor this '.join(same)}" if same else "no line has these three together"
        return False, f"{self.name}: {told}: {why}."


def read_scan_filter(path: str | Path) -> ScanFilter:
    """Read an allow-list with the columns Study Description, KVP and Convolution Kernel.

    Comparison is exact, also in upper and lower case, except that runs of spaces count as one, that 120,
    120.0 and '120' are one voltage, and that a kernel of several values may be written as the text of a
    list, `['Hr40s', '3']`, or with backslashes, `Hr40s\\3`, as DICOM does. `Hr40s` allows only the kernel
    that has no second value. Further columns are not looked at.

    Args:
        path: a CSV file.

    Raises:
        DataError: no such file, a column is missing, a cell is empty, a KVP is no number, or a kernel is no
            list; the line is named.
    """
    file = Path(path).expanduser()
    table = read_table(file)
    columns = {_HEADINGS.get("".join(c for c in name.lower() if c.isalnum()), ""): name for name in table.columns}
    missing = [_NAMES[name] for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(
            f"{file.name} is no scan filter: it has no column {' and no column '.join(missing)}.",
            got=", ".join(table.columns),
            expected="Study Description,KVP,Convolution Kernel",
            do="Add the column: one line per combination that is allowed.",
        )
    lines: dict[Triple, int] = {}
    for number, row in enumerate(table[[columns[name] for name in COLUMNS]].itertuples(index=False), start=2):
        cells = [str(cell) for cell in row]
        triple = _triple(*cells)
        if "" in triple[:2] or not triple[2]:
            raise _wrong(file, number, ",".join(cells), "three cells that are not empty", "Fill the cell.")
        if not _is_number(triple[1]):
            raise _wrong(file, number, cells[1], "a voltage in kV, such as 120 or 120.0", "Correct the KVP.")
        lines.setdefault(triple, number)
    if not lines:
        raise _wrong(file, 2, "no line", "at least one combination", "An empty allow-list would keep no scan.")
    return ScanFilter(file.name, lines)


def _wrong(file: Path, line: int, got: str, expected: str, do: str) -> DataError:
    return DataError(f"{file.name} line {line} cannot be used.", got=got, expected=expected, do=do)


def _triple(description: str, kvp: str, kernel: str) -> Triple:
    return " ".join(description.split()), _voltage(kvp), kernel_parts(kernel)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _voltage(text: str) -> str:
    """A voltage in one spelling: 120.0, 120 and '120' are the same."""
    text = text.strip().strip("'\"")
    return f"{float(text):g}" if _is_number(text) else text


def kernel_parts(text: str) -> tuple[str, ...]:
    """The values of a convolution kernel: `Hr40s`, `['Hr40s', '3']` and `Hr40s\\3` as tuples of their parts."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            found = ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            found = text[1:-1].split(",")  # [Hr40s, 3], as some exports write it
        parts = [str(part).strip() for part in found]
    else:
        parts = [part.strip() for part in text.split("\\")]
    return tuple(part for part in parts if part)


def _written(parts: tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else str(list(parts))
