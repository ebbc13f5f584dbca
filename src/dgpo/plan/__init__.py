"""What a run will cost: memory, tokens and time, computed before anything is loaded."""
