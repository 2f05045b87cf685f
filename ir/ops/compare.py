"""Comparisons and classifications: bool results."""
