"""Layout operations: reshape, permute, broadcast, slice, pad, concat, flip."""
