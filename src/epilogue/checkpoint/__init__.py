"""WEIGHTS ON DISK: checkpoint directories in the Hugging Face layout, read and written.

    files         a directory's JSON and tensors, one shard at a time
    huggingface   the names other programs give our tensors
    gguf          the one-file format of llama.cpp and KoboldCpp
    hub           a source (directory, .gguf or owner/name) to where it lies
    dtypes        the number formats of weights, and going from one to another
    inventory     which tensors a config asks for, and how a checkpoint departs from that
    metadata      what lies beside the weights: config and tokenizer
    load, save    the two directions
    gguf_export   a checkpoint to a .gguf
    staging       files that appear all at once or not at all

Nothing here runs code that comes with a checkpoint.
"""

from epilogue.checkpoint.files import read_tensors
from epilogue.checkpoint.gguf_export import WEIGHT_TYPES, export_gguf
from epilogue.checkpoint.hub import resolve
from epilogue.checkpoint.load import Checkpoint, load_checkpoint
from epilogue.checkpoint.metadata import load_config, load_tokenizer
from epilogue.checkpoint.save import save_checkpoint

__all__ = [
    "WEIGHT_TYPES",
    "Checkpoint",
    "export_gguf",
    "load_checkpoint",
    "load_config",
    "load_tokenizer",
    "read_tensors",
    "resolve",
    "save_checkpoint",
]
