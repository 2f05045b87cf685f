"""The language: types, operations, functions, text, verification, meaning, derivatives and passes.

Imports nothing of graphc's other floors.
"""
