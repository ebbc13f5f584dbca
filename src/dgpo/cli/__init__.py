"""The `dgpo` command: one file per sub-command; each parses, calls and prints."""
