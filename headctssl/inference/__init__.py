"""Inference: predictions and embeddings for files no dataset knows."""
