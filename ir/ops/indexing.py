"""Gather, scatter and their kin."""
