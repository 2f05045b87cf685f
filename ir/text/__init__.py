"""The text form of the language: printing and parsing, with `parse(print(f)) == f`.

Printing needs nothing but this package; the parser generator is imported by the first parse.
"""

from graphc.ir.text.errors import IRSyntaxError, draw
from graphc.ir.text.parser import parse_function, parse_module
from graphc.ir.text.printer import function_lines, print_function, print_module

__all__ = [
    "IRSyntaxError",
    "draw",
    "function_lines",
    "parse_function",
    "parse_module",
    "print_function",
    "print_module",
]
