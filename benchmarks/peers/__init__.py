"""Whom we are compared with: one file for each, which starts it and reads through it."""
