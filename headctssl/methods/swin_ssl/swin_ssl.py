"""Swin_ssl: an encoder tells how a scan was turned, finds its other view, and fills in what was cut out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from headctssl.errors import UsageError
from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.gather import gather_samples
from headctssl.methods.masked import absolute_error
from headctssl.methods.method import Method, Requirement, check_views
from headctssl.methods.optimizers import OPENMIND_CNN
from headctssl.methods.simclr.simclr_loss import nt_xent
from headctssl.methods.spread import embedding_signs, unit_spread
from headctssl.methods.swin_ssl.corruption import TURNS, cut_out, cutout_mask, turned
from headctssl.networks.decoders import voxel_decoder
from headctssl.networks.encoder import Encoder
from headctssl.networks.transformer import init_linear
from headctssl.planning.run_settings import RunSettings
from headctssl.presets import OptimizerDefaults
from headctssl.settings import Settings as BaseSettings
from headctssl.types import Clock, StepResult, Views

__all__ = ["SwinSsl", "SwinSslSettings"]

_COPIES = 2


class SwinSslSettings(BaseSettings):
    """Defaults of arXiv 2111.14791 and its public code."""

    rotation_weight: float = Field(1.0, ge=0, description="Weight of telling the turn.")
    contrastive_weight: float = Field(1.0, ge=0, description="Weight of finding the other view.")
    inpainting_weight: float = Field(1.0, ge=0, description="Weight of filling in.")
    temperature: float = Field(0.5, gt=0, description="Divides the cosines of the contrastive term.")
    head_outputs: int = Field(512, ge=2, description="Channels of the embedding that is compared.")
    head_norm: bool = Field(
        True,
        description="Whether features are brought to mean 0 and variance 1 over the global batch before the two heads;"
        " published without, where the contrastive term of a ViT stays flat.",
    )
    cutout_share: float = Field(0.3, ge=0, lt=1, description="Largest share of a view's voxels that is cut out.")
    cutout_sides: tuple[float, float] = Field(
        (0.05, 0.25), description="Smallest and largest side of a box that is cut out, over that of the view."
    )

    @field_validator("cutout_sides")
    @classmethod
    def _is_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("two shares of a side: 0 < smallest <= largest <= 1")
        return value


@dataclass
class _Copies:
    """Both changed copies of every view, rows in the order copy, view, sample."""

    whole: Tensor  # (R, C, D, H, W), turned
    cut: Tensor  # (R, C, D, H, W), turned and cut out
    valid: Tensor  # (R, 1, D, H, W) bool, turned
    hidden: Tensor  # (R, 1, D, H, W) bool, where cut out
    turns: Tensor  # (R,) int64


class SwinSsl(Method):
    """The pretraining of Swin UNETR (arXiv 2111.14791), for every encoder.

    Each view is turned and cut out twice. A linear head on the features tells the turn, another gives the embedding by
    which the two copies find each other among all of the global batch, and the encoder's own decoder restores the
    turned view without the holes. Both heads read pooled features; the public code reads one place of the last stage.
    Features are normalised over the global batch first: what all scans have in common says nothing about one of them.

    Args:
        settings: weights, temperature, holes.
    """

    Settings: ClassVar[type[BaseSettings]] = SwinSslSettings
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    batch_coupled: ClassVar[bool] = True

    def __init__(self, settings: SwinSslSettings) -> None:
        super().__init__(settings)
        self.settings: SwinSslSettings = settings

    @classmethod
    def optimizer_defaults(cls, kind: Literal["transformer", "cnn"]) -> OptimizerDefaults:
        """The optimiser: the published one for a transformer, OpenMind's for a CNN."""
        if kind == "transformer":
            return OptimizerDefaults(
                optimizer="adamw",
                lr=4e-4,
                lr_reference_batch=4,
                lr_rule="fixed",
                weight_decay=0.1,
                weight_decay_end=0.1,
                clip_norm=1.0,
                warmup_share=0.005,
                min_lr_share=0.0,
                schedule="cosine",
                betas=(0.9, 0.999),
                source="public code of arXiv 2111.14791, its defaults",
            )
        return OPENMIND_CNN

    def build(self, encoder: Encoder, run: RunSettings) -> None:
        """See `Method.build`.

        Raises:
            UsageError: there is a single view per step, or the views do not fit the encoder.
        """
        if run.views.global_count * run.training.batch_size < 2:
            raise UsageError(
                "swin_ssl has nothing to compare.",
                got=f"global_count {run.views.global_count}, batch {run.training.batch_size}",
                expected="at least two scans per step",
                do="Set training.batch_size=4 or more.",
            )
        group = global_group(run.views, run.input)
        # A head mirrored front to back looks like one turned by 180 degrees: such flips would make turns ambiguous.
        # Mirrored left to right it still has its face in front and its top above.
        self.plan = ViewPlan((replace(group, flip_probability=(0.0, 0.0, group.flip_probability[2])),))
        check_views(self.plan, encoder)
        self.encoder = encoder
        self.rotation_head = nn.Linear(encoder.embed_dim, TURNS)
        self.contrastive_head = nn.Linear(encoder.embed_dim, self.settings.head_outputs)
        for head in (self.rotation_head, self.contrastive_head):
            init_linear(head)
        self.decoder = voxel_decoder(encoder, len(run.input.windows))

    def views(self) -> ViewPlan:
        """Global views, flipped left and right only; each one is a sample of its own."""
        return self.plan

    def training_step(self, views: Views, clock: Clock) -> StepResult:
        """See `Method.training_step`."""
        s = self.settings
        copies = self._copies(views)
        out = self.encoder(copies.cut)
        features, turns = self._of_all(out.features.float(), views), self._of_all(copies.turns, views)
        if s.head_norm:
            features = functional.batch_norm(features, None, None, training=True, eps=1e-6)
        with torch.autocast(features.device.type, enabled=False):
            said, embeddings = self.rotation_head(features), self.contrastive_head(features)
        rotation = functional.cross_entropy(said, turns)
        contrastive, cosines = nt_xent(embeddings.view(-1, _COPIES, s.head_outputs).transpose(0, 1), s.temperature)
        restored = self.decoder(out, copies.cut)
        inpainting = absolute_error(restored, copies.whole, copies.valid.expand_as(restored).float())
        loss = s.rotation_weight * rotation + s.contrastive_weight * contrastive + s.inpainting_weight * inpainting
        with torch.no_grad():
            half = cosines.shape[0] // 2
            partner = torch.arange(2 * half, device=cosines.device).roll(half)
            holes = (copies.hidden & copies.valid).expand_as(restored).float()
            logs = {
                "rotation": rotation.detach(),
                "contrastive": contrastive.detach(),
                "inpainting": inpainting.detach(),
                "rotation_accuracy": (said.argmax(-1) == turns).float().mean(),
                "found": (cosines.argmax(dim=1) == partner).float().mean(),
                "hole_error": absolute_error(restored, copies.whole, holes),
                "cutout_share": copies.hidden.float().mean(),
                "feature_std": unit_spread(out.features),
                **embedding_signs(embeddings),
            }
        return StepResult(loss, logs)

    def encoder_to_export(self) -> Encoder:
        """The trained encoder."""
        return self.encoder

    @staticmethod
    def _of_all(rows: Tensor, views: Views) -> Tensor:
        """Rows (R, ...) by (copy, view, sample) as those of all processes by (sample, view, copy)."""
        samples = rows.view(_COPIES, -1, views.batch_size, *rows.shape[1:]).transpose(0, 2)
        return gather_samples(samples.contiguous()).flatten(0, 2)

    @torch.no_grad()
    def _copies(self, views: Views) -> _Copies:
        """Turn and cut every view twice, each sample from its own generator."""
        s = self.settings
        parts: dict[str, list[Tensor]] = {"whole": [], "cut": [], "valid": [], "hidden": []}
        turns: list[int] = []
        for copy in range(_COPIES):
            for index, volume in enumerate(views.groups["global"]):
                valid = views.valid("global", index)
                for sample, generator in enumerate(views.generators(f"swin_ssl{index}.{copy}")):
                    turn = int(generator.integers(TURNS))
                    one = turned(volume[sample], turn)
                    d, h, w = one.shape[1:]
                    holes = cutout_mask(generator, (d, h, w), s.cutout_share, s.cutout_sides)
                    parts["whole"].append(one)
                    parts["cut"].append(cut_out(one, holes, int(generator.integers(2**62))))
                    parts["valid"].append(turned(valid[sample], turn))
                    parts["hidden"].append(torch.from_numpy(holes)[None].to(volume.device))
                    turns.append(turn)
        stacked = {name: torch.stack(members) for name, members in parts.items()}
        return _Copies(**stacked, turns=torch.tensor(turns, device=stacked["whole"].device))
