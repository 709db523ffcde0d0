"""Planning examples: fingerprints and machines of invented datasets for the tests of planning."""

from __future__ import annotations

from typing import Literal

from headctssl.planning.fingerprint import DatasetFingerprint, Spread
from headctssl.planning.machine import Machine

LAPTOP = Machine(
    device="cpu",
    memory_gb=16,
    cores=4,
    bf16=True,
    matmul_gflops_float32=100,
    matmul_gflops_bf16=250,
    conv_gflops_float32=100,
    conv_gflops_bf16=200,
    elementwise_per_ns=2,
    bandwidth_gb_s=30,
    launch_us=3,
)
GPU = Machine(
    device="cuda",
    memory_gb=80,
    cores=16,
    bf16=True,
    matmul_gflops_float32=40_000,
    matmul_gflops_bf16=400_000,
    conv_gflops_float32=20_000,
    conv_gflops_bf16=100_000,
    elementwise_per_ns=500,
    bandwidth_gb_s=2_000,
    launch_us=5,
)


def spread(*values: float) -> Spread:
    return Spread.of(values)


def fingerprint(
    *,
    slices: tuple[float, ...] = (0.7, 1.0, 5.0),
    pixels: tuple[float, ...] = (0.45, 0.49),
    extent: tuple[float, float, float] = (185.0, 215.0, 165.0),
    cases: int = 1000,
    profile: Literal["real", "clinical", "laptop", "template"] = "real",
    head_hu: tuple[float, ...] = (-900.0, -80.0, 10.0, 32.0, 60.0, 900.0, 1400.0),
) -> DatasetFingerprint:
    z, y, x = (spread(0.8 * e, e) for e in extent)
    big = spread(250.0)
    return DatasetFingerprint(
        dataset_id=1,
        dataset_name="Dataset001_Example",
        profile=profile,
        num_cases=cases,
        num_subjects=cases,
        num_unreadable=0,
        source_formats=("nifti",),
        spacing_mm=(spread(*slices), spread(*pixels), spread(*pixels)),
        shape=(spread(34), spread(512), spread(512)),
        field_of_view_mm=(big, big, big),
        thick_slice_share=0.5,
        tilted_share=0.0,
        uneven_share=0.0,
        sampled_cases=min(cases, 25),
        head_extent_mm=(z, y, x),
        head_hu=head_hu,
        doubtful_hu=0,
    )
