"""Phantom: synthetic labelled head CTs in three parts: anatomy, findings, acquisition."""
