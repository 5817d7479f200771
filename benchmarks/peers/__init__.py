"""Other programs on the same weights, in the same run; needs `pip install -e '.[benchmarks]'`."""
