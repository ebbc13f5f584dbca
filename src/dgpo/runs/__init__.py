"""Run folders: what happened in a run, written, read and described."""
