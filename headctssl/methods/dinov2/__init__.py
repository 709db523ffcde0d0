"""Dinov2: self-distillation of scans and of masked tokens, kept apart by Sinkhorn-Knopp and KoLeo."""
