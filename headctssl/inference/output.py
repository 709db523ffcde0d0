"""Output: the file that a command is to write, and what may be there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headctssl.errors import UsageError

__all__ = ["output_file", "refuse_existing", "remove_old"]


def output_file(output: Path, default_name: str, suffixes: Sequence[str]) -> Path:
    """The file that `-o` means: with a suffix a file, without one a folder that gets `default_name`.

    Raises:
        UsageError: the suffix is not one that can be written, or a file is where a folder should be.
    """
    if not output.suffix or output.is_dir():
        if output.is_file():
            raise UsageError(
                "-o names a file without a suffix.", got=output, expected="a folder", do="Name another -o."
            )
        return output / default_name
    if output.suffix.lower() not in suffixes:
        raise UsageError(
            "The output cannot be written in this format.",
            got=output.suffix,
            expected=" or ".join(suffixes) + ", or a folder",
            do="Change the suffix after -o.",
        )
    return output


def refuse_existing(files: Sequence[Path], *, overwrite: bool) -> None:
    """Stop before the work when it would end in replacing a file.

    Args:
        files: what the command may write, and what beside it would no longer fit.
        overwrite: `--overwrite`: they may be replaced.

    Raises:
        UsageError: one exists and `overwrite` is False.
    """
    existing = [path for path in files if path.exists()]
    if existing and not overwrite:
        raise UsageError(
            "The output exists already.",
            got=", ".join(str(path) for path in existing),
            expected="a file that does not exist",
            do="Name another -o, or replace what is there with --overwrite.",
        )


def remove_old(files: Sequence[Path]) -> None:
    """Remove what `--overwrite` allowed to replace where nothing takes its place: it would pass for the new output.

    Args:
        files: as for `refuse_existing`.
    """
    for path in files:
        path.unlink(missing_ok=True)
