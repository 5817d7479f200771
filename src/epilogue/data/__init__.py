"""Corpus to shards to batches."""

from epilogue.data.loader import WindowLoader
from epilogue.data.manifest import ShardDocument
from epilogue.data.prepare import prepare_shards
from epilogue.data.shards import Shards, ShardWriter
from epilogue.data.sources import Document, iterate_documents

__all__ = ["Document", "ShardDocument", "ShardWriter", "Shards", "WindowLoader", "iterate_documents", "prepare_shards"]
