"""Converters: one module per published layout."""
