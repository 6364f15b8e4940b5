"""Weights stored as small numbers, and what the small numbers mean."""
