"""Swin_ssl: which way a scan was turned, which other view is of the same scan, and what was cut out of it."""
