"""Dataset: the raw dataset, the only reader of raw images, splits, verification."""
