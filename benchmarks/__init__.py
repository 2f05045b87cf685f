"""Benchmarks: graphc beside its peers and beside the limits of the machine.

`python -m benchmarks` measures and prints a table; `python -m benchmarks.profile` times the kernels of one
program. docs/performance.md says how to read the results.
"""
