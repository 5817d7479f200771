"""Books found to books worth training on: sources, cleaning, judgement, duplicates and the report."""
