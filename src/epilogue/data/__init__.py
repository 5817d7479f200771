"""Corpus to shards to batches."""

from epilogue.data.loader import Batch, WindowLoader
from epilogue.data.manifest import ShardDocument
from epilogue.data.prepare import prepare_shards, write_shards
from epilogue.data.shards import Shards
from epilogue.data.sources import Document, iterate_documents
from epilogue.data.writing import ShardWriter

__all__ = [
    "Batch",
    "Document",
    "ShardDocument",
    "ShardWriter",
    "Shards",
    "WindowLoader",
    "iterate_documents",
    "prepare_shards",
    "write_shards",
]
