"""Signals turned into scores, with controls and intervals."""
