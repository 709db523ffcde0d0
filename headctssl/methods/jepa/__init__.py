"""Jepa: what a teacher sees in most of a scan is predicted from a small part of it."""
