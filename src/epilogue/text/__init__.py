"""BOOK TEXT <-> TOKENS: books and their readers, the tokenizer, and ids back to whole text."""

from epilogue.text.book import Book, Chapter
from epilogue.text.parallel import encode_in_order
from epilogue.text.readers import read_book, read_book_bytes
from epilogue.text.stream import TextStream
from epilogue.text.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "Book",
    "Chapter",
    "TextStream",
    "Tokenizer",
    "encode_in_order",
    "read_book",
    "read_book_bytes",
    "train_tokenizer",
]
