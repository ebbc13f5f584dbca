"""Worker processes that can be killed: a grader that hangs costs its own process and nothing else."""
