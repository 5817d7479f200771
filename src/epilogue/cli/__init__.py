"""The command line: main.py declares the verbs, one file each runs them."""
