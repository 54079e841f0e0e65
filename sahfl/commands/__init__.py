"""The commands of ``sahfl``: one module per subject, with a function for each command, which ``app`` registers.

A command parses, makes one call of the library, and prints: results on stdout, what to do next on stderr.
"""
