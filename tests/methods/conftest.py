"""Fixtures: run settings and views made by hand, so that methods are tested without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from headctssl.contract import InputSpec, StorageRule, Window
from headctssl.methods import method_class
from headctssl.methods.method import Method
from headctssl.networks import build_from_settings
from headctssl.planning.run_settings import Estimate, RunSettings, TrainingSettings, ViewSettings
from headctssl.presets import encoder_preset
from headctssl.settings import JsonValue, with_overrides
from headctssl.types import Views

Shape = tuple[int, int, int]

SMALL: dict[str, dict[str, JsonValue]] = {
    "dino": {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16},
    "dinov2": {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16},
    "jepa": {"predictor_width": 48, "predictor_depth": 1, "predictor_heads": 3},
    "lejepa": {"head_hidden": 32, "head_outputs": 8, "directions": 16},
    "mae": {"decoder_width": 48, "decoder_depth": 1, "decoder_heads": 3},
    "models_genesis": {"shuffle_windows": 500},
    "simclr": {"head_hidden": 32, "head_outputs": 8},
    "simmim": {},
    "spark": {},
    "supervised": {},
    "voco": {"head_hidden": 32, "head_outputs": 16},
    "swin_ssl": {"head_outputs": 16},
    "volume_fusion": {"smallest_side": 3},
}

VIEWS: dict[str, dict[str, JsonValue]] = {
    "voco": {"base_grid": 2, "local_count": 2, "local_shape": [12, 12, 12]},
}
"""Views of methods that need others than two global ones."""

CLASSES = ("bright", "middle")
"""Classes of the views: what is above 0.6 in the first channel, and what is between 0.4 and 0.6."""

WINDOWS = (Window(level=40, width=80), Window(level=80, width=200), Window(level=600, width=2800))


def run_settings(
    method: str,
    preset: str,
    shape: Shape = (24, 24, 24),
    views: dict[str, JsonValue] | None = None,
    settings: dict[str, JsonValue] | None = None,
    encoder: dict[str, JsonValue] | None = None,
) -> RunSettings:
    """Run settings as `resolve` would make them, at test size."""
    chosen = with_overrides(method_class(method).Settings(), SMALL[method] | (settings or {}))
    return RunSettings(
        dataset_ids=(1,),
        method_name=method,
        config=preset,
        storage=StorageRule(),
        input=InputSpec(rule="fixed_spacing", shape=shape, spacing_mm=(1.0, 1.0, 1.0), windows=WINDOWS),
        encoder=with_overrides(encoder_preset(preset).settings, {"input_shape": list(shape), **(encoder or {})}),
        read_shape=shape,
        training=TrainingSettings(num_steps=100, samples_per_epoch=100, batch_size=4, lr=1e-3),
        views=with_overrides(ViewSettings(), {"local_count": 0, **VIEWS.get(method, {}), **(views or {})}),
        method=chosen,
        segmentation_classes=CLASSES if "segmentation" in method_class(method).requires else (),
        estimate=Estimate(step_seconds=0, scans_per_second=0, memory_gb=0, hours=0),
        decisions=(),
    )


def make_method(run: RunSettings, seed: int = 0) -> Method:
    """A built method in train mode."""
    torch.manual_seed(seed)
    method = method_class(run.method_name)(run.method)
    method.build(build_from_settings(run.encoder), run)
    return method.train()


def make_views(
    batch: int = 2,
    global_shapes: tuple[Shape, ...] = ((24, 24, 24), (24, 24, 24)),
    local_shapes: tuple[Shape, ...] = (),
    seed: int = 0,
    detail: int = 4,
) -> Views:
    """Smooth random views, interpolated between `detail` random values per axis, all stored, tissue and labelled."""
    generator = torch.Generator().manual_seed(seed)

    def view(shape: Shape) -> torch.Tensor:
        coarse = torch.rand(batch, 3, detail, detail, detail, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")

    groups = {"global": tuple(view(s) for s in global_shapes)}
    if local_shapes:
        groups["local"] = tuple(view(s) for s in local_shapes)
    # A grid of 2 x 2 cells with a side of 8 voxels, and two crops as large somewhere in it.
    groups["base"] = tuple(view((12, 12, 12)) for _ in range(4))
    groups["crop"] = tuple(view((12, 12, 12)) for _ in range(2))
    starts = torch.tensor([[0.0, 8.0 * (n // 2), 8.0 * (n % 2)] for n in range(4)])[:, None].expand(4, batch, 3)
    within = torch.rand(2, batch, 3, generator=generator) * torch.tensor([0.0, 8.0, 8.0])
    boxes = {name: torch.stack([at, at + 8], dim=-1) for name, at in (("base", starts), ("crop", within))}
    inside = {name: tuple(torch.ones_like(v[:, :1]) for v in members) for name, members in groups.items()}
    segmentation = {
        name: tuple(((v[:, :1] > 0.6) + 2 * ((v[:, :1] > 0.4) & (v[:, :1] <= 0.6))).to(torch.int16) for v in members)
        for name, members in groups.items()
    }
    known = torch.ones(batch, len(CLASSES), dtype=torch.bool)
    tissue = {name: tuple(i > 0 for i in members) for name, members in inside.items()}
    return Views(
        groups,
        inside,
        torch.arange(batch),
        seed=seed,
        epoch=0,
        segmentation=segmentation,
        known_classes=known,
        tissue=tissue,
        boxes=boxes,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as the processes of tests have: sums in another order differ in their last bits, which BatchNorm
    over a few samples makes many. Tiny tensors are no slower for it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toolbox() -> tuple[Callable[..., RunSettings], Callable[..., Method], Callable[..., Views]]:
    """`run_settings`, `make_method` and `make_views`."""
    return run_settings, make_method, make_views
