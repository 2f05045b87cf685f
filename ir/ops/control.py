"""Calls and identities that steer differentiation and checks."""
