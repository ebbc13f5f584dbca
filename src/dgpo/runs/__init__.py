"""Runs: what happened in one, written, read and described."""
