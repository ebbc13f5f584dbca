"""Everything that needs a GPU, in pieces: `benchmarks/gpu.sh OUT` runs them. README.md beside gpu.sh says how."""
