"""Example: a method and an encoder that headctssl finds through entry points."""
