"""Kinds of messages that a site answers: one file each, and the table that holds them all."""
