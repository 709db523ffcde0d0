"""Planning: fingerprint -> plans -> run settings, every decision with its reason."""
