"""Lejepa loss: how far embeddings are from an isotropic Gaussian, and how far views are from each other."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["prediction_loss", "random_directions", "sigreg"]

# Legend: V views, B samples, D channels, S directions, T knots.


def random_directions(channels: int, count: int, seed: int) -> Tensor:
    """Unit vectors (D, S) float32 drawn uniformly from the sphere, a function of the seed alone.

    Args:
        channels: D.
        count: S.
        seed: the same on every process, another one for every step.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(channels, count, generator=generator), dim=0)


def sigreg(embeddings_VBD: Tensor, directions_DS: Tensor, *, knots: int = 17, largest: float = 3.0) -> Tensor:
    """Sketched isotropic Gaussian regularisation (arXiv 2511.08544, section 4 and algorithm 1).

    Along each direction the empirical characteristic function of the samples is compared with that of the standard
    normal distribution, exp(-t^2 / 2): the Epps-Pulley statistic B * integral |phi_B(t) - phi(t)|^2 w(t) dt with
    the Gaussian weight w(t) = exp(-t^2 / 2), by the trapezoid rule. The integrand is even in t, so the integral over
    [-largest, largest] is twice that over [0, largest].

    Args:
        embeddings_VBD: embeddings of the global batch, float; each view is tested by itself.
        directions_DS: unit vectors.
        knots: points of the trapezoid rule on [0, largest].
        largest: where the integral ends.

    Returns:
        Scalar float32, mean over views and directions; about 1.06 for a Gaussian sample of any size (the
        integral of (1 - exp(-t^2)) exp(-t^2 / 2)), .41 B for a collapsed one.
    """
    with torch.autocast(embeddings_VBD.device.type, enabled=False):
        projected = embeddings_VBD.float() @ directions_DS.to(embeddings_VBD.device)
    t = torch.linspace(0.0, largest, knots, device=projected.device)
    gaussian = torch.exp(-0.5 * t.square())
    angles = projected[..., None] * t
    error = (angles.cos().mean(1) - gaussian).square() + angles.sin().mean(1).square()
    statistic = 2.0 * torch.trapezoid(error * gaussian, t, dim=-1) * embeddings_VBD.shape[1]
    return statistic.mean()


def prediction_loss(embeddings_VBD: Tensor, num_global: int) -> Tensor:
    """Squared distance of every view to the mean of its sample's global views (arXiv 2511.08544, section 5).

    Args:
        embeddings_VBD: the global views first.
        num_global: number of global views.

    Returns:
        Scalar float32, mean over views, samples and channels. Nothing is detached.
    """
    embeddings = embeddings_VBD.float()
    centre = embeddings[:num_global].mean(0)
    return (embeddings - centre).square().mean()
