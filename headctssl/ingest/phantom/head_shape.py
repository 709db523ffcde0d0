"""Head shape: what growing a finding needs to know of a head, whether it is parametric or a real image."""

from __future__ import annotations

from typing import Protocol

from headctssl.ingest.phantom.fields import Array, Position
from headctssl.ingest.phantom.shapes import Part, Triple

__all__ = ["HeadShape"]


class HeadShape(Protocol):
    """Surfaces of a head in head coordinates (z, y, x) in mm, origin in the middle of the cranial cavity."""

    @property
    def half_mm(self) -> Triple:
        """Half extents of the cranial cavity (z up, y, x)."""

    @property
    def gap_mm(self) -> float:
        """Mean width of the CSF between skull and brain."""

    @property
    def scale(self) -> Triple:
        """Size against the nominal head per axis."""

    @property
    def base_parts(self) -> tuple[Part, ...]:
        """Pieces of the skull base."""

    @property
    def face_parts(self) -> tuple[Part, ...]:
        """Pieces of the face."""

    def inner_table(self, position: Position) -> Array:
        """Signed distance to the inner surface of the skull in mm, negative in the cavity."""

    def skull_thickness(self, position: Position) -> Array:
        """Thickness of the skull in mm."""

    def lateral_ventricle(self, position: Position) -> Array:
        """Signed distance to the lateral ventricles in mm, in the brain's own coordinates."""

    def subarachnoid(self, position: Position, own: Position, surface: Array, ventricle: Array) -> Array:
        """Share of each place that is CSF between brain and skull.

        Args:
            position: head coordinates.
            own: the brain's own coordinates of the same places.
            surface: signed distance to the surface that the brain lies under, `inner_table` where nothing pushes it.
            ventricle: `lateral_ventricle` there.
        """
