"""Benchmarks: measured ratios to peers on the same input, the same output and the same number of threads."""
