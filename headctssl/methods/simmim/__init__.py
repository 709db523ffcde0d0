"""Simmim: reconstruction of masked tokens by a linear head."""
