"""Planner: fingerprint -> plans, in numbered, sourced steps."""

from __future__ import annotations

from headctssl.planning.plans import load_plans

__all__ = ["load_plans"]
