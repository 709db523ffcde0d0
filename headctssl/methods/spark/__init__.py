"""Spark: sparse masked modelling for CNNs."""
