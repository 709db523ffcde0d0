"""Preprocess: cases of a dataset to the store."""

from __future__ import annotations

from headctssl.preprocessing.one_case import Preprocessed, preprocess_volume

__all__ = ["Preprocessed", "preprocess_volume"]
