"""GGUF, the one-file format of llama.cpp and KoboldCpp, read and written.

    file          the container: metadata and where each tensor lies; believes nothing a header claims
    types         the number formats inside, and going to and from tensors
    architecture  an MPT's config and tensor names in llama.cpp's words
    vocabulary    the tokenizer in llama.cpp's words
    source        a .gguf read as a checkpoint

Writing one is ``checkpoint/gguf_export.py``.
"""

from epilogue.checkpoint.gguf.source import is_gguf, read_gguf_config, read_gguf_tensors, read_gguf_tokenizer

__all__ = [
    "is_gguf",
    "read_gguf_config",
    "read_gguf_tensors",
    "read_gguf_tokenizer",
]
