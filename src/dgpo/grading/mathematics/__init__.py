"""Grading of mathematics: where the answer of a response is, what it says, and whether it equals another."""
