"""Usable: whether a volume that was read can be a head CT in Hounsfield units, for planning and preprocessing."""

from __future__ import annotations

from headctssl.dataset.intensity import noted_fault
from headctssl.errors import DataError
from headctssl.types import Volume

__all__ = ["require_hounsfield"]


def require_hounsfield(volume: Volume) -> str | None:
    """Refuse a volume whose values are not Hounsfield units.

    Args:
        volume: as `read` returned it; its notes tell of the voxels as stored.

    Returns:
        A sentence when the values may not be Hounsfield units, None when they are.

    Raises:
        DataError: they are not, so that every window would show something else.
    """
    # Not asked of the voxels again: straightening adds air around them, which would hide that there was none.
    fault = noted_fault(volume.info.notes)
    if fault is not None and fault.kind == "not_hu":
        what, _, found = fault.text.rstrip(".").partition(": ")
        raise DataError(
            f"{what}.",
            got=found,
            expected="Hounsfield units: air near -1000, brain 20 to 45",
            do="Convert the image to Hounsfield units, or leave it out.",
        )
    return None if fault is None else fault.text
