"""Reporting: HTML pages and pictures, the demo."""
