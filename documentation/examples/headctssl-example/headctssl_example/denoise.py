"""Denoise: predict a scan from a noisy copy of it."""

import torch
from pydantic import Field

from headctssl.loading.views import ViewPlan, global_group
from headctssl.methods.method import Method, check_views
from headctssl.networks.decoders import voxel_decoder
from headctssl.presets import MethodFacts, OptimizerDefaults
from headctssl.settings import Settings
from headctssl.types import StepResult

FACTS = MethodFacts(
    "denoise", "resenc_l", student_views=(("global", 1.0),), teacher_views=(), reference="this example",
    paper="Vincent et al. 2008, ICML", global_views=1, smallest_batch=1, predicts_voxels=True,
)  # fmt: skip


class DenoiseSettings(Settings):
    sigma: float = Field(0.1, gt=0, description="Standard deviation of the noise, in windows.")


class Denoise(Method):
    Settings, facts = DenoiseSettings, FACTS

    @classmethod
    def optimizer_defaults(cls, kind):
        return OptimizerDefaults("adamw", 1e-3, 32, "sqrt", 0.05, 0.05, 1.0, 0.05, 0.0, "cosine", source="this example")

    def build(self, encoder, run):
        self.encoder = encoder
        self.decoder = voxel_decoder(encoder, outputs=len(run.input.windows))
        self.plan = ViewPlan((global_group(run.views, run.input),))
        check_views(self.plan, encoder)

    def views(self):
        return self.plan

    def training_step(self, views, clock):
        clean, valid = views.groups["global"][0], views.valid("global", 0)
        draws = [g.standard_normal(clean.shape[1:], dtype="float32") for g in views.generators("denoise")]
        noisy = clean + self.settings.sigma * torch.stack([torch.from_numpy(d) for d in draws]).to(clean.device)
        error = (self.decoder(self.encoder(noisy), noisy).float() - clean) ** 2 * valid
        per_scan = error.sum((1, 2, 3, 4)) / (valid.sum((1, 2, 3, 4)).clamp(min=1) * clean.shape[1])
        return StepResult(per_scan.mean(), {"noise_left": per_scan.mean().detach() / self.settings.sigma**2})

    def encoder_to_export(self):
        return self.encoder
