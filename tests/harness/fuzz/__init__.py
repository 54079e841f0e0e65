"""Fuzzed inputs: valid inputs of every reader, changes that a seed decides, and the outcomes that are allowed."""
