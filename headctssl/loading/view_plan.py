"""View plan: which groups of views a scan gives, and how each is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headctssl.contract import InputSpec
from headctssl.errors import UsageError
from headctssl.planning.run_settings import ViewSettings

__all__ = ["ViewGroup", "ViewPlan", "global_group", "local_group", "view_plan"]

Shape = tuple[int, int, int]
Range = tuple[float, float]
Focus = Literal["anatomy", "segmentation"]


@dataclass(frozen=True)
class ViewGroup:
    """Views of one kind. Probabilities given as tuples hold one value per view, repeated cyclically."""

    name: str
    count: int  # views per scan
    shape: Shape  # voxels (z, y, x) of a view
    scale: Range  # side of the crop over the side of the frame, drawn for each axis by itself
    flip_probability: tuple[float, float, float] = (0.0, 0.0, 0.0)  # per axis (z, y, x); x swaps left and right
    rotate_probability: float = 0.0
    rotate_degrees: float = 0.0  # largest angle about each axis
    window_probability: float = 0.0
    window_shift: float = 0.0  # largest move of the windows' levels, in their widths
    window_stretch: float = 0.0  # largest share by which their widths grow or shrink, below 1
    shift_probability: float = 0.0
    shift: float = 0.0  # largest intensity shift, in windows
    blur_probability: tuple[float, ...] = (0.0,)
    blur_sigma: Range = (0.5, 1.0)  # voxels of the view
    gamma_probability: tuple[float, ...] = (0.0,)
    gamma: Range = (1.0, 1.0)  # exponent
    noise_probability: float = 0.0
    noise_sigma: float = 0.0  # largest standard deviation, in windows
    focus: tuple[tuple[Focus, float], ...] = ()
    """(mask, chance that a view is centred on a voxel of it, each voxel with the same chance) for scans that have it;
    the second mask is asked where the first was not drawn."""
    overlap: float = 0.0
    """Least share of its volume that each view after the first has in common with the first, and the first with it."""
    grid: int = 0
    """Above 0: the views are cells of a grid in the plane with so many rows and columns; `scale` is the side of the
    whole grid in the plane, and a cell is as thick as it is wide, as shares of the frame."""
    within: str = ""
    """Name of an earlier group with the same grid: the views are as large as its cells and lie anywhere within it."""

    def __post_init__(self) -> None:
        assert self.count >= 1, "a group without views does not belong into a plan"
        assert 0 < self.scale[0] <= self.scale[1] <= 1, self.scale
        assert 0 <= self.overlap <= 1, self.overlap
        assert not (self.grid and self.overlap), "cells do not overlap"
        assert not self.grid or self.within or self.count == self.grid**2, "a grid is drawn whole"


@dataclass(frozen=True)
class ViewPlan:
    """The groups of views an objective needs, in the order in which they are drawn."""

    groups: tuple[ViewGroup, ...]
    tissue: bool = False  # whether the objective wants to know which voxels of a view are not air

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        assert len(set(names)) == len(names), f"two groups share a name: {names}"


def global_group(views: ViewSettings, spec: InputSpec, count: int | None = None) -> ViewGroup:
    """The group "global": large crops at the shape of the encoder's input, with every augmentation.

    Args:
        views: the settings of the run.
        spec: what the encoder sees.
        count: views per scan; ``views.global_count`` when None.

    Raises:
        UsageError: there is to be none.
    """
    count = views.global_count if count is None else count
    if count < 1:
        raise UsageError(
            "The objective needs a global view.",
            got="views.global_count=0",
            expected="at least 1",
            do="Set views.global_count to 1 or more.",
        )
    return ViewGroup(
        name="global",
        count=count,
        shape=spec.shape,
        scale=views.global_scale,
        flip_probability=_flips(views),
        rotate_probability=views.rotate_probability,
        rotate_degrees=views.rotate_degrees,
        window_probability=views.window_probability,
        window_shift=views.window_shift,
        window_stretch=views.window_stretch,
        shift_probability=views.shift_probability,
        shift=views.shift,
        blur_probability=views.blur_probability,
        blur_sigma=views.blur_sigma,
        gamma_probability=views.gamma_probability,
        gamma=views.gamma,
        noise_probability=views.noise_probability,
        noise_sigma=views.noise_sigma,
        focus=(("anatomy", views.focus_anatomy),),
    )


def local_group(views: ViewSettings, count: int | None = None) -> ViewGroup:
    """The group "local": small crops; flips, rotations, windows and shifts only where ``views.augment_local`` is set.

    Args:
        views: the settings of the run.
        count: views per scan; ``views.local_count`` when None.
    """
    augment = views.augment_local
    return ViewGroup(
        name="local",
        count=views.local_count if count is None else count,
        shape=views.local_shape,
        scale=views.local_scale,
        flip_probability=_flips(views) if augment else (0.0, 0.0, 0.0),
        rotate_probability=views.rotate_probability if augment else 0.0,
        rotate_degrees=views.rotate_degrees,
        window_probability=views.window_probability if augment else 0.0,
        window_shift=views.window_shift,
        window_stretch=views.window_stretch,
        shift_probability=views.shift_probability if augment else 0.0,
        shift=views.shift,
        focus=(("anatomy", views.focus_anatomy),),
    )


def view_plan(views: ViewSettings, spec: InputSpec) -> ViewPlan:
    """Global views, and local ones where ``views.local_count`` is above 0."""
    groups = [global_group(views, spec)]
    if views.local_count > 0:
        groups.append(local_group(views))
    return ViewPlan(tuple(groups))


def _flips(views: ViewSettings) -> tuple[float, float, float]:
    """Left and right are only swapped where that was asked for: labels carry a side."""
    p = views.flip_probability
    return (p, p, p if views.flip_lr else 0.0)
