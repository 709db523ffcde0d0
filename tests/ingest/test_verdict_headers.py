"""Tests of the verdict of headers alone: what is no scan is rejected, a word alone never rejects a stack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headctssl.ingest.header_rules import body_part_of
from headctssl.ingest.scan import SeriesFacts
from headctssl.ingest.verdict import judge_facts

HEAD = SeriesFacts(
    modality="CT",
    sop_class="1.2.840.10008.5.1.4.1.1.2",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    series_description="HEAD 5.0 Hr40",
    study_description="CT HEAD WITHOUT CONTRAST",
    body_part="HEAD",
    convolution_kernel="['Hr40s', '3']",
    num_images=32,
    num_positions=32,
    images_per_position=1,
    frames=32,
    orientation="axial",
    slice_thickness_mm=5.0,
    median_gap_mm=5.0,
    smallest_gap_mm=5.0,
    largest_gap_mm=5.0,
    rows=512,
    columns=512,
    pixel_spacing_mm=(0.45, 0.45),
    transfer_syntaxes=("1.2.840.10008.1.2.1",),
    photometric="MONOCHROME2",
    bits=12,
)
SCOUT = {"num_positions": 1, "num_images": 1, "frames": 1, "median_gap_mm": None}

TABLE: list[tuple[str, dict[str, Any], str, str]] = [
    # name, what the headers say other than a head scan, verdict, a part of its reason
    ("clean head", {}, "accept", ""),
    ("no header values", {"image_type": (), "sop_class": "", "photometric": "", "bits": 0}, "accept", ""),
    ("enhanced", {"sop_class": "1.2.840.10008.5.1.4.1.1.2.1"}, "accept", ""),
    ("legacy converted", {"sop_class": "1.2.840.10008.5.1.4.1.1.2.2"}, "accept", ""),
    ("contrast named", {"contrast": True}, "accept", ""),
    ("no annotation burnt in", {"burned_in": False}, "accept", ""),
    ("two thicknesses", {"smallest_gap_mm": 1.1, "largest_gap_mm": 7.0}, "accept", ""),
    ("no thickness", {"slice_thickness_mm": None, "median_gap_mm": None}, "accept", ""),
    ("JPEG 2000, lossy or not", {"transfer_syntaxes": ("1.2.840.10008.1.2.4.91",)}, "accept", ""),
    ("MR", {"modality": "MR", "sop_class": "1.2.840.10008.5.1.4.1.1.4"}, "reject", "MR, not CT"),
    ("PET", {"modality": "PT", "sop_class": "1.2.840.10008.5.1.4.1.1.128"}, "reject", "PT, not CT"),
    ("radiograph", {"modality": "DX", "sop_class": "1.2.840.10008.5.1.4.1.1.1.1"}, "reject", "DX, not CT"),
    ("secondary capture", {"sop_class": "1.2.840.10008.5.1.4.1.1.7"}, "reject", "secondary capture"),
    ("multi-frame capture", {"sop_class": "1.2.840.10008.5.1.4.1.1.7.4"}, "reject", "secondary capture"),
    ("dose report", {"sop_class": "1.2.840.10008.5.1.4.1.1.88.67"}, "reject", "structured report"),
    ("PDF", {"sop_class": "1.2.840.10008.5.1.4.1.1.104.1"}, "reject", "document"),
    ("unknown object", {"sop_class": "1.2.3.4"}, "reject", "1.2.3.4"),
    ("localiser", {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER"), **SCOUT}, "reject", "scout"),
    ("localiser of many images", {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "reject", "scout"),
    ("topogram by its name", {"series_description": "Topogram 0.6 T20f", **SCOUT}, "reject", "scout"),
    ("a word in the name of a stack", {"series_description": "HEAD AFTER SCOUT"}, "review", "scout"),
    ("dose picture", {"image_type": ("DERIVED", "SECONDARY", "SCREEN SAVE"), **SCOUT}, "reject", "dose report"),
    ("Dose Report by its name", {"series_description": "Dose Report", **SCOUT}, "reject", "dose report"),
    ("MIP", {"image_type": ("DERIVED", "SECONDARY", "AXIAL", "MIP")}, "reject", "projection"),
    ("MIP by its name only", {"series_description": "MIP HEAD"}, "review", "projection"),
    ("thin slices for 3D", {"series_description": "HEAD 3D THIN 0.625"}, "accept", ""),
    ("low dose", {"series_description": "LOW DOSE HEAD"}, "accept", ""),
    ("volume rendering", {"image_type": ("DERIVED", "SECONDARY", "VOLUME RENDERING")}, "reject", "3D picture"),
    ("perfusion map", {"image_type": ("DERIVED", "PRIMARY", "CBF")}, "reject", "map"),
    ("subtraction", {"image_type": ("DERIVED", "PRIMARY", "SUBTRACTION")}, "reject", "subtraction"),
    ("axial reformat", {"image_type": ("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE")}, "review", "MPR"),
    ("derived, not said how", {"image_type": ("DERIVED", "PRIMARY", "AXIAL")}, "review", "derived"),
    ("coronal", {"orientation": "coronal"}, "review", "coronal"),
    ("4D", {"temporal": True, "images_per_position": 20}, "reject", "over time"),
    ("perfusion", {"series_description": "CTP 5.0", "images_per_position": 30}, "reject", "over time"),
    ("bolus tracking", {"images_per_position": 12, **SCOUT}, "reject", "bolus tracking"),
    ("head of a stroke protocol", {"series_description": "HEAD WO (PERFUSION)"}, "review", "plain scan"),
    ("stroke study", {"study_description": "CT HEAD PERFUSION"}, "accept", ""),
    ("two phases", {"images_per_position": 3}, "review", "3 images at one position"),
    ("a copy of each slice", {"images_per_position": 2}, "accept", ""),
    ("burnt-in text", {"burned_in": True}, "reject", "burnt into the pixels"),
    ("colour", {"photometric": "RGB", "bits": 8}, "reject", "colours (RGB)"),
    ("8 bits", {"bits": 8}, "reject", "8 bits"),
    ("lossy 12 bits", {"transfer_syntaxes": ("1.2.840.10008.1.2.4.51",)}, "review", "with loss"),
    ("one slice", {"num_positions": 1, "median_gap_mm": None}, "reject", "It has 1 slice;"),
    ("nine slices", {"num_positions": 9}, "reject", "It has 9 slices;"),
    ("ten slices of 10 mm", {"num_positions": 10, "median_gap_mm": 10.0}, "accept", ""),
    ("small picture", {"rows": 64, "columns": 64}, "reject", "29 x 29 mm"),
    ("short", {"num_positions": 40, "median_gap_mm": 0.6, "largest_gap_mm": 0.6}, "review", "only 24 mm"),
    ("chest", {"series_description": "HELICAL CHEST"}, "review", "another part of the body"),
    ("body part left over from another study", {"body_part": "CHEST"}, "accept", ""),
]


@pytest.mark.parametrize(("name", "changes", "status", "told"), TABLE, ids=[row[0] for row in TABLE])
def test_headers(name: str, changes: dict[str, Any], status: str, told: str) -> None:
    found, reasons = judge_facts(replace(HEAD, **changes))
    assert found == status, reasons
    assert (found == "accept") == (reasons == ())
    assert any(told in reason for reason in reasons) or not told
    assert all(reason.endswith((".", "?", ")")) for reason in reasons)


@pytest.mark.parametrize(
    ("texts", "part"),
    [
        ({"series_description": "HEAD 5mm", "body_part": "CHEST"}, "head"),
        ({"series_description": "THORAX 1.0", "study_description": "CT HEAD AND CHEST", "body_part": "HEAD"}, "body"),
        ({"study_description": "CT BRAIN W/O"}, "head"),
        ({"series_description": "", "body_part": "ABDOMENPELVIS"}, "body"),
        ({"series_description": "Head_Chest_Abdomen"}, ""),
        ({"series_description": "SHIPYARD 5"}, ""),
        ({}, ""),
    ],
)
def test_the_part_of_the_body_that_headers_name(texts: dict[str, str], part: str) -> None:
    assert body_part_of(SeriesFacts(**texts)) == part
