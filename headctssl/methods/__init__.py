"""Methods: one folder per self-supervised objective."""
