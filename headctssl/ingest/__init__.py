"""Ingest: from what a hospital exports, or from nothing, to a raw dataset."""
