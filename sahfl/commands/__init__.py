"""The commands of ``sahfl``: one module per subject, each a function that ``app`` registers.

A command parses, makes one call of the library, and prints: results on stdout, what to do next on stderr.
"""
