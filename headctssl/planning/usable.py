"""Usable: whether a volume that was read can be a head CT in Hounsfield units, for planning and preprocessing."""

from __future__ import annotations

from headctssl.dataset.intensity import hounsfield_fault
from headctssl.errors import DataError
from headctssl.types import Volume

__all__ = ["require_hounsfield"]


def require_hounsfield(volume: Volume) -> str | None:
    """Refuse a volume whose values are not Hounsfield units.

    Args:
        volume: as `read` returned it.

    Returns:
        A sentence when the values may not be Hounsfield units, None when they are.

    Raises:
        DataError: they are not, so that every window would show something else.
    """
    fault = hounsfield_fault(volume.hu)
    if fault is not None and fault.kind == "not_hu":
        raise DataError(
            fault.text,
            got=f"{int(volume.hu.min())} to {int(volume.hu.max())}",
            expected="Hounsfield units: air near -1000, brain 20 to 45",
            do="Convert the image to Hounsfield units, or leave it out.",
        )
    return None if fault is None else fault.text
