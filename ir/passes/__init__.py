"""Passes: named values `Function -> Function`, and pipelines of their names. Importing this loads no pass.

Invariants: a pass never changes a bit of any result (see docs/architecture.md, the bit contract), keeps
the signature and the source lines, and returns the same `Function` object when it changes nothing.
"""

from graphc.ir.passes.pipeline import DEFAULT, PASSES, Pass, PassObserver, observe, run_pipeline

__all__ = ["DEFAULT", "PASSES", "Pass", "PassObserver", "observe", "run_pipeline"]
