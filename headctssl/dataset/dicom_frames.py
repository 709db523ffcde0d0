"""DICOM frames: geometry and rescaling of every frame of a multi-frame CT, from its functional groups.

DICOM PS3.3 C.7.6.16: what a macro says stands in the item of the frame, or for all frames in the shared item. Legacy
Converted Enhanced CT keeps what has no macro among the unassigned attributes.
"""

from __future__ import annotations

from headctssl.dataset.dicom_header import Header, HeaderError, open_header, tags_of
from headctssl.dataset.dicom_slices import Common, Slice, kernel_text, number_text, rescaling, vector

__all__ = ["frames_of"]

_TAGS = tags_of(
    """SpecificCharacterSet SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ContrastBolusAgentSequence
    PlanePositionSequence ImagePositionPatient PlaneOrientationSequence ImageOrientationPatient PixelMeasuresSequence
    PixelSpacing SliceThickness PixelValueTransformationSequence RescaleSlope RescaleIntercept CTImageFrameTypeSequence
    FrameType CTXRayDetailsSequence KVP CTReconstructionSequence ConvolutionKernel FrameContentSequence CodeMeaning
    TemporalPositionIndex FrameAcquisitionNumber FrameAcquisitionDateTime UnassignedSharedConvertedAttributesSequence
    UnassignedPerFrameConvertedAttributesSequence"""
)
_TOP = tuple(
    _TAGS[name]
    for name in (
        "SpecificCharacterSet",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "ContrastBolusAgentSequence",
    )
)


def frames_of(one: Slice) -> list[Slice]:
    """The frames of a multi-frame CT in the order of the file.

    Args:
        one: what the header says outside of the functional groups.

    Raises:
        HeaderError: the frames are not described, or not all of them.
    """
    header = open_header(one.file, _TOP)
    items = header.items(_TAGS["PerFrameFunctionalGroupsSequence"])
    if len(items) != one.common.frames:
        raise HeaderError(f"functional groups of {len(items)} frames where the file holds {one.common.frames}")
    shared = header.item(_TAGS["SharedFunctionalGroupsSequence"])
    agent = header.item(_TAGS["ContrastBolusAgentSequence"])
    base = one.common
    if agent is not None and not base.contrast:
        base = base._replace(contrast=agent.text(_TAGS["CodeMeaning"]) or "agent")
    seen: dict[Common, Common] = {}
    frames: list[Slice] = []
    for index, item in enumerate(items):
        groups = _Groups(item, shared)
        common = groups.common(base)
        position, fault = groups.vector("PlanePositionSequence", "ImagePositionPatient", 3)
        frames.append(
            one._replace(
                frame=index,
                time=groups.time(),
                acquisition=groups.acquisition(),
                position=position,
                fault=fault,
                common=seen.setdefault(common, common),
            )
        )
    return frames


class _Groups:
    """The functional groups of one frame, those of all frames behind them."""

    def __init__(self, item: Header, shared: Header | None) -> None:
        self._items = [item] if shared is None else [item, shared]

    def _macro(self, name: str) -> Header | None:
        found = (item.item(_TAGS[name]) for item in self._items)
        return next((macro for macro in found if macro is not None), None)

    def vector(self, macro: str, name: str, count: int) -> tuple[tuple[float, ...], str]:
        group = self._macro(macro)
        return ((), f"without {name}") if group is None else vector(group, _TAGS, name, count)

    def _texts(self, macro: str, name: str) -> tuple[str, ...]:
        """Values of a macro, or where it does not say of the attributes that a conversion left unassigned."""
        unassigned = (
            "UnassignedPerFrameConvertedAttributesSequence",
            "UnassignedSharedConvertedAttributesSequence",
        )
        for group in (self._macro(place) for place in (macro, *unassigned)):
            if group is not None and (values := group.texts(_TAGS[name])):
                return values
        return ()

    def _number(self, macro: str, name: str) -> float | None:
        try:
            values = {float(text) for text in self._texts(macro, name)}
        except ValueError:
            return None
        return values.pop() if len(values) == 1 else None

    def time(self) -> str:
        """What tells repeated acquisitions apart."""
        names = ("TemporalPositionIndex", "FrameAcquisitionNumber", "FrameAcquisitionDateTime")
        content = self._macro("FrameContentSequence")
        return "" if content is None else "/".join(content.text(_TAGS[name]) for name in names)

    def acquisition(self) -> int | None:
        """FrameAcquisitionNumber, None where it is not stated."""
        content = self._macro("FrameContentSequence")
        return None if content is None else content.integer(_TAGS["FrameAcquisitionNumber"])

    def common(self, base: Common) -> Common:
        """The values of the file with those of the frame in their place."""
        orientation, fault = self.vector("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        spacing, other = self.vector("PixelMeasuresSequence", "PixelSpacing", 2)
        values = self._macro("PixelValueTransformationSequence")
        (slope, intercept), odd = ((None, None), "") if values is None else rescaling(values, _TAGS)
        frame_type = tuple(part.upper() for part in self._texts("CTImageFrameTypeSequence", "FrameType"))
        return base._replace(
            orientation=orientation,
            spacing_mm=spacing,
            slope=slope,
            intercept=intercept,
            image_type=frame_type or base.image_type,
            kvp=number_text(self._number("CTXRayDetailsSequence", "KVP")) or base.kvp,
            kernel=kernel_text(self._texts("CTReconstructionSequence", "ConvolutionKernel")) or base.kernel,
            thickness_mm=self._number("PixelMeasuresSequence", "SliceThickness") or base.thickness_mm,
            fault=fault or other or odd,
        )
