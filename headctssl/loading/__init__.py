"""Loading: sampler -> crops -> batches -> views."""
