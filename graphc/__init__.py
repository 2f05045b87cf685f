"""graphc: a compiler-style deep-learning framework."""
