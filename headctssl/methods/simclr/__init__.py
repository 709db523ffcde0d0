"""Simclr: two overlapping crops of a scan are told from the crops of all other scans."""
