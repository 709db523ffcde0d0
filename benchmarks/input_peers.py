"""Peers of one case: MONAI doing HeadCT-Foundation's chain, and nnunetv2's default preprocessor at 1 mm."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

__all__ = ["EDGE", "WINDOWS", "monai_case", "nnunet_case"]

EDGE = 96
WINDOWS = ((40, 80), (80, 200), (600, 2800))
"""Level and width in HU."""


def monai_case(path: Path) -> Callable[[], tuple[float, float]]:
    """Seconds to read and to preprocess."""
    import torch
    from monai import transforms

    load = transforms.Compose([transforms.LoadImage(image_only=True), transforms.EnsureChannelFirst()])
    scale = [transforms.ScaleIntensityRange(a - b / 2, a + b / 2, 0.0, 1.0, clip=True) for a, b in WINDOWS]
    chain = transforms.Compose(
        [
            transforms.Spacing(pixdim=(1.0, 1.0, 1.0), mode=3),
            transforms.CropForeground(allow_smaller=False),
            lambda image: torch.cat([one(image) for one in scale]),
            transforms.Resize(spatial_size=(EDGE,) * 3),
        ]
    )

    def run() -> tuple[float, float]:
        began = time.process_time()
        image = load(path)
        read = time.process_time()
        view = chain(image)
        done = time.process_time()
        assert view.shape == (3, EDGE, EDGE, EDGE)
        return read - began, done - read

    return run


def nnunet_case(path: Path) -> Callable[[], tuple[float, float]]:
    """Seconds to read and to preprocess."""
    with redirect_stdout(io.StringIO()):  # it prints its paths
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(_nnunet_plans())
    configuration = manager.get_configuration("3d_fullres")
    preprocessor, reader = DefaultPreprocessor(verbose=False), manager.image_reader_writer_class()

    def run() -> tuple[float, float]:
        began = time.process_time()
        data, properties = reader.read_images([str(path)])
        read = time.process_time()
        stored, _, _ = preprocessor.run_case_npy(data, None, properties, manager, configuration, {})
        done = time.process_time()
        assert abs(stored.shape[1] - data.shape[1] * properties["spacing"][0]) < 1
        return read - began, done - read

    return run


def _nnunet_plans() -> dict[str, Any]:
    """The parts of nnU-Net's plans that its preprocessor reads, as its planner writes them for CT, at 1 mm."""
    resampling: dict[str, Any] = {}
    for what, segmentation, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": segmentation,
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
    return {
        "dataset_name": "Dataset001_Head",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 40.0, "std": 30.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}
        },
        "configurations": {
            "3d_fullres": {
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "architecture": {},
                **resampling,
            }
        },
    }
