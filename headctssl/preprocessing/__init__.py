"""Preprocessing: raw cases -> stored cases, with a report per case."""
