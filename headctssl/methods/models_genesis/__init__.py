"""Models Genesis: an encoder learns by repairing scans that were shuffled, remapped and painted over."""
