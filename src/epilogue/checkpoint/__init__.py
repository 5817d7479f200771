"""WEIGHTS ON DISK: checkpoint directories in the Hugging Face layout, read and written.

    files         a directory's JSON and tensors, one shard at a time
    huggingface   the names other programs give our tensors
    hub           a source (directory or owner/name) to a directory
    dtypes        the number formats of weights, and going from one to another
    inventory     which tensors a config asks for, and how a checkpoint departs from that
    metadata      what lies beside the weights: config and tokenizer
    gptq          quantised layers in the layouts of GPTQ's writers
    quantised     quantised layers on their way into a model
    load, save    the two directions
    parts         a checkpoint read tensor by tensor
    export_quantised   a quantised model for other programs, read back before it counts
    staging       files that appear all at once or not at all

Nothing here runs code that comes with a checkpoint.
"""

from epilogue.checkpoint.export_quantised import GPTQFormat, export_gptq
from epilogue.checkpoint.files import read_tensors
from epilogue.checkpoint.hub import resolve
from epilogue.checkpoint.load import Checkpoint, load_checkpoint
from epilogue.checkpoint.metadata import load_config, load_tokenizer
from epilogue.checkpoint.save import save_checkpoint

__all__ = [
    "Checkpoint",
    "GPTQFormat",
    "export_gptq",
    "load_checkpoint",
    "load_config",
    "load_tokenizer",
    "read_tensors",
    "resolve",
    "save_checkpoint",
]
