"""Mae: reconstruction of masked patches or blocks."""
