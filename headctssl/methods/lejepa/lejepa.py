"""Lejepa: all views of a scan meet at one point, and the points of all scans form a Gaussian."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, view_plan
from headctssl.methods.gather import gather_samples
from headctssl.methods.lejepa.lejepa_loss import prediction_loss, random_directions, sigreg
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.multi_view import encode_views
from headctssl.methods.spread import embedding_signs, unit_spread
from headctssl.networks.encoder import Encoder
from headctssl.networks.projector import Projector
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.seeding import derive_seed
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["Lejepa", "LejepaSettings"]


class LejepaSettings(BaseSettings):
    """Defaults of arXiv 2511.08544 and its public example."""

    sigreg_weight: float = Field(
        0.05, ge=0, le=1, description="Share lambda of the Gaussian term in the loss; the rest is the prediction term."
    )
    directions: int = Field(256, ge=1, description="Random directions, drawn anew at every step.")
    knots: int = Field(17, ge=2, description="Points of the integral over frequencies.")
    largest_frequency: float = Field(3.0, gt=0, description="Where the integral over frequencies ends.")
    head_hidden: int = Field(2048, ge=1, description="Width of the projector's two hidden layers.")
    head_outputs: int = Field(64, ge=2, description="Channels of the embedding.")


class Lejepa(Method):
    """LeJEPA (arXiv 2511.08544): no teacher, no stop-gradient, no prototypes, and one weight to choose.

    Every view, global or local, is pulled to the mean of its scan's global views; SIGReg keeps the embeddings of
    each view an isotropic Gaussian over the batch, so they cannot collapse. Statistics are those of the global batch.

    Args:
        settings: weight, directions, sizes of the projector.
    """

    Settings: ClassVar[type[BaseSettings]] = LejepaSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    batch_coupled: ClassVar[bool] = True

    def __init__(self, settings: LejepaSettings) -> None:
        super().__init__(settings)
        self.settings: LejepaSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser for one kind of encoder."""
        decay = 5e-2 if kind == "transformer" else 5e-4
        return OptimizerDefaults(
            optimizer="adamw",
            lr=5e-4,
            lr_reference_batch=256,
            lr_rule="fixed",
            weight_decay=decay,
            weight_decay_end=decay,
            clip_norm=3.0,
            warmup_share=0.1,
            min_lr_share=1e-3,
            schedule="cosine",
            betas=(0.9, 0.999),
            source="arXiv 2511.08544, section 6; clipping as DINO's",
        )

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: there are fewer than two views or two scans per step, or the views do not fit the encoder.
        """
        views, batch = run.views.global_count + run.views.local_count, run.training.batch_size
        if views < 2 or run.views.global_count < 1 or batch < 2:
            raise UsageError(
                "LeJEPA has nothing to compare.",
                got=f"global_count {run.views.global_count}, local_count {run.views.local_count}, batch {batch}",
                expected="at least two views per scan, one of them global, and two scans per step",
                do="Set views.global_count=2 and training.batch_size=8 or more.",
            )
        self.plan = view_plan(run.views, run.input)
        check_views(self.plan, encoder)
        self.encoder = encoder
        self.projector = Projector(encoder.embed_dim, self.settings.head_hidden, self.settings.head_outputs)

    def views(self) -> ViewPlan:
        """Global and local views."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        s = self.settings
        members = [*views.groups["global"], *views.groups.get("local", ())]
        features = torch.stack(encode_views(self.encoder, members), dim=1)
        gathered_BVC = gather_samples(features.float())
        batch, count, _ = gathered_BVC.shape
        embeddings_VBD = self.projector(gathered_BVC.flatten(0, 1)).view(batch, count, -1).transpose(0, 1)
        seed = derive_seed(views.seed, clock.step, "sigreg")
        directions = random_directions(s.head_outputs, s.directions, seed)
        gaussian = sigreg(embeddings_VBD, directions, knots=s.knots, largest=s.largest_frequency)
        prediction = prediction_loss(embeddings_VBD, len(views.groups["global"]))
        loss = s.sigreg_weight * gaussian + (1.0 - s.sigreg_weight) * prediction
        with torch.no_grad():
            shown = len(views.groups["global"])
            logs = {
                "sigreg": gaussian.detach(),
                "prediction": prediction.detach(),
                "feature_std": unit_spread(gathered_BVC[:, :shown].flatten(0, 1)),
                **embedding_signs(embeddings_VBD[:shown].flatten(0, 1)),
            }
        return StepResult(loss, logs)

    def encoder_to_export(self) -> Encoder:
        """The trained encoder."""
        return self.encoder
