"""Train reference: HeadCT-Foundation's training steps in MONAI's transformer blocks, float32, torch's defaults.

Written from the paper (arXiv 2502.02779) and from MAE (arXiv 2111.06377) and DINO (arXiv 2104.14294): a convolution
embeds every patch, MONAI's blocks with their default attention, AdamW and the moving average as a loop over parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ReferenceDino", "ReferenceMae", "ReferenceViT"]

# Legend: B samples, N = 512 patches of 12^3 voxels, K kept patches, C width.

PATCH, GRID, WIDTH, CHANNELS = 12, 8, 768, 3
VALUES = CHANNELS * PATCH**3
CLIP = 3.0


def _blocks(depth: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(TransformerBlock(WIDTH, 4 * WIDTH, heads) for _ in range(depth))


class ReferenceViT(nn.Module):
    """ViT-B/12 at 96^3 with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(CHANNELS, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, GRID**3, WIDTH))
        self.blocks = _blocks(12, 12)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, 96, 96, 96) to (B, 1 + N or K, C); every patch is embedded, then the kept ones are chosen."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        if keep is not None:
            tokens = torch.gather(tokens, 1, keep[..., None].expand(-1, -1, WIDTH))
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)
        return out


class ReferenceMae(nn.Module):
    """Masked autoencoder: 75 % masked, decoder of 8 blocks and 16 heads on all tokens, error on masked patches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ReferenceViT()
        self.into = nn.Linear(WIDTH, WIDTH)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, GRID**3, WIDTH))
        self.blocks = _blocks(8, 16)
        self.norm = nn.LayerNorm(WIDTH)
        self.predict = nn.Linear(WIDTH, VALUES)
        self.optimizer = torch.optim.AdamW(self.parameters(), 1e-5, betas=(0.9, 0.95), weight_decay=0.05)

    def step(self, volume: Tensor) -> float:
        """One optimiser step; the loss."""
        count = volume.shape[0]
        order = torch.rand(count, GRID**3).argsort(1)
        back = order.argsort(1)
        encoded = self.encoder(volume, order[:, : GRID**3 // 4])
        tokens = self.into(encoded)
        hidden = self.mask_token.expand(count, GRID**3 - GRID**3 // 4, -1)
        patches = torch.cat([tokens[:, 1:], hidden], 1)
        patches = torch.gather(patches, 1, back[..., None].expand(-1, -1, WIDTH)) + self.position
        tokens = torch.cat([tokens[:, :1], patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        predicted = self.predict(self.norm(tokens[:, 1:]))
        sides = volume.reshape(count, CHANNELS, GRID, PATCH, GRID, PATCH, GRID, PATCH)
        target = sides.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(count, GRID**3, VALUES)
        masked = (back >= GRID**3 // 4).float()
        loss = (((predicted - target) ** 2).mean(-1) * masked).sum() / masked.sum()
        return _update(self, self.optimizer, loss)


class ReferenceDino(nn.Module):
    """Self-distillation: 65,536 prototypes, the student sees every view, the teacher the first two."""

    def __init__(self, prototypes: int = 65_536) -> None:
        super().__init__()
        self.student = nn.Sequential(ReferenceViT(), _Class(), _Head(prototypes))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.center = torch.zeros(prototypes)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-5, weight_decay=0.04)

    def step(self, views: Sequence[Tensor]) -> float:
        """One optimiser step on views (B, C, 96, 96, 96), global ones first; the loss."""
        with torch.no_grad():
            outputs = self.teacher(torch.cat(list(views[:2])))
            targets = functional.softmax((outputs - self.center) / 0.04, -1).chunk(2)
        logits = self.student(torch.cat(list(views))).chunk(len(views))
        losses = [
            -(target * functional.log_softmax(logit / 0.1, -1)).sum(-1).mean()
            for t, target in enumerate(targets)
            for v, logit in enumerate(logits)
            if t != v
        ]
        value = _update(self.student, self.optimizer, torch.stack(losses).mean())
        with torch.no_grad():
            self.center = 0.9 * self.center + 0.1 * outputs.mean(0)
            for follower, leader in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                follower.mul_(0.994).add_(0.006 * leader)
        return value


class _Class(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class _Head(nn.Module):
    """Three layers, an L2 norm, and weight-normed prototypes whose length stays 1."""

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        layers = [nn.Linear(WIDTH, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)]
        self.mlp = nn.Sequential(*layers)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(256, prototypes, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1.0)
        self.last.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.last(functional.normalize(self.mlp(features), dim=-1))
        return out


def _update(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    optimizer.step()
    return float(loss.detach())
