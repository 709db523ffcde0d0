"""Dino: self-distillation between views without labels."""
