"""Scores turned into the paper's figures, choices and verdicts."""
