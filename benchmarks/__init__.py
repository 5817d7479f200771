"""Speed and memory, one file per thing measured; python -m benchmarks.NAME."""
