"""Simclr: each of two overlapping crops of a scan finds the other among the crops of all scans."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.gather import gather_samples
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.multi_view import encode_views
from headctssl.methods.optimizers import OPENMIND_CNN, OPENMIND_TRANSFORMER
from headctssl.methods.simclr.simclr_loss import nt_xent
from headctssl.methods.spread import embedding_signs, unit_spread
from headctssl.networks.encoder import Encoder
from headctssl.networks.projector import Projector
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Simclr", "SimclrSettings"]


class SimclrSettings(BaseSettings):
    """Defaults of OpenMind (arXiv 2412.17041) and of arXiv 2002.05709."""

    temperature: float = Field(0.5, gt=0, description="Divides the cosines.")
    least_overlap: float = Field(
        0.5, ge=0, le=1, description="Least share of each crop's volume that it has in common with the other."
    )
    head_hidden: int = Field(2048, ge=1, description="Width of the projector's two hidden layers.")
    head_outputs: int = Field(128, ge=2, description="Channels of the embedding.")


class Simclr(Method):
    """SimCLR (arXiv 2002.05709) in 3D, as in OpenMind (arXiv 2412.17041).

    The two crops of a scan have at least half of their volume in common, so that they show the same anatomy. All
    other crops of the global batch are negatives, with gradients.

    Args:
        settings: temperature, overlap, sizes of the projector.
    """

    Settings: ClassVar[type[BaseSettings]] = SimclrSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    batch_coupled: ClassVar[bool] = True

    def __init__(self, settings: SimclrSettings) -> None:
        super().__init__(settings)
        self.settings: SimclrSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser for one kind of encoder."""
        # The rate follows the root of the batch: better than in proportion for small ones (arXiv 2002.05709, B.1).
        if kind == "transformer":
            return replace(
                OPENMIND_TRANSFORMER,
                lr_reference_batch=32,
                lr_rule="sqrt",
                source="arXiv 2412.17041, Primus; rule of the rate arXiv 2002.05709, appendix B.1",
            )
        return replace(
            OPENMIND_CNN,
            lr_reference_batch=32,
            lr_rule="sqrt",
            clip_norm=0.1,
            source="arXiv 2412.17041 and its public trainer; rule of the rate arXiv 2002.05709, appendix B.1",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: there are not two views per scan or fewer than two scans per step, or the views do not fit
                the encoder.
        """
        views, batch = run.views.global_count, run.training.batch_size
        if views != 2 or batch < 2:
            raise UsageError(
                "SimCLR has nothing to compare.",
                got=f"global_count {views}, batch {batch}",
                expected="two global views per scan and at least two scans per step",
                do="Set views.global_count=2 and training.batch_size=8 or more.",
            )
        self.plan = ViewPlan((replace(global_group(run.views, run.input), overlap=self.settings.least_overlap),))
        check_views(self.plan, encoder)
        self.encoder = encoder
        self.projector = Projector(encoder.embed_dim, self.settings.head_hidden, self.settings.head_outputs)

    def views(self) -> ViewPlan:
        """Two global views that overlap."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        features = torch.stack(encode_views(self.encoder, views.groups["global"]), dim=1)
        gathered_BVC = gather_samples(features.float())
        features_VBC = gathered_BVC.transpose(0, 1)
        # The projector's norms see all views of the global batch, so that no process can tell its own scans by them.
        embeddings = self.projector(features_VBC.flatten(0, 1)).view(*features_VBC.shape[:2], -1)
        loss, cosines = nt_xent(embeddings, self.settings.temperature)
        spread = unit_spread(gathered_BVC.flatten(0, 1))
        signs = embedding_signs(embeddings.flatten(0, 1))
        return StepResult(loss, {**_found(cosines), "feature_std": spread, **signs})

    def encoder_to_export(self) -> Encoder:
        """The trained encoder."""
        return self.encoder


def _found(cosines: Tensor) -> dict[str, Tensor]:
    """How often the other view of a scan is the nearest of all, and cosines with it and with the others."""
    half = cosines.shape[0] // 2
    partner = torch.arange(2 * half, device=cosines.device).roll(half)
    positive = cosines.gather(1, partner[:, None]).mean()
    finite = cosines.masked_fill(cosines == -torch.inf, 0.0)
    others = (finite.sum() - positive * 2 * half) / (2 * half * (2 * half - 2))
    found = (cosines.argmax(dim=1) == partner).float().mean()
    return {"found": found, "cosine_positive": positive, "cosine_negative": others}
