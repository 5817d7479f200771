"""BOOKS FOUND -> BOOKS WORTH TRAINING ON: sources, cleaning, checks, duplicates and the report."""

from epilogue.corpus.executors import Cluster
from epilogue.corpus.judging import Wanted
from epilogue.corpus.selecting import Selection, select_books

__all__ = ["Cluster", "Selection", "Wanted", "select_books"]
