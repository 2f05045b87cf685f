"""Pooling windows and their gradients."""
