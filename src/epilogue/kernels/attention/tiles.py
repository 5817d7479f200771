"""The tile that every backend and every plan of attention shares."""

TILE_TOKENS = 256
"""Queries that go through a kernel together and share one edge of a reach plan."""
