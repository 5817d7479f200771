"""Operations: one folder each, with its meaning, its oracle and one file per backend."""
