"""Lejepa: views predict each other's mean while their embeddings stay an isotropic Gaussian."""
