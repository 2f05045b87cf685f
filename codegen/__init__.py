"""The back end: from functions of the IR to kernels, objects and programs.

Knows `graphc.ir`; nothing of tensors, modules or Python traces.
"""
