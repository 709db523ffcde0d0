"""Voco: where a crop of a scan lies is told from how much it is like the crops of a grid."""
