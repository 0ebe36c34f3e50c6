"""Builders of child objects: pure functions from what was decided to what the API server gets."""
