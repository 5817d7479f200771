"""WEIGHTS ON DISK: checkpoint directories in the Hugging Face layout, read and written.

    files         a directory's JSON and tensors, one shard at a time
    huggingface   the names other programs give our tensors
    gguf          the one-file format of llama.cpp and KoboldCpp
    hub           a source (directory, .gguf or owner/name) to where it lies
    dtypes        the number formats of weights, and going from one to another
    inventory     which tensors a config asks for, and how a checkpoint departs from that
    fingerprint   what a loaded model is, in one short name
    metadata      what lies beside the weights: config and tokenizer
    gptq          quantised layers in the layouts of GPTQ's writers
    quantised     quantised layers on their way into a model
    load, save    the two directions
    export_huggingface   a directory for transformers, with model_card and what plain_transformers would get wrong
    parts         a checkpoint read tensor by tensor
    export_quantised   a quantised model for other programs, read back before it counts
    adapter       low-rank adapters in PEFT's files, and into the weights they stand beside
    gguf_export   a checkpoint to a .gguf
    steps         the weights in a step of a training run, which may lie in parts
    staging       files that appear all at once or not at all

Nothing here runs code that comes with a checkpoint.
"""

from epilogue.checkpoint.adapter import adapter_weights, load_adapter, merge_adapter, save_adapter
from epilogue.checkpoint.export_huggingface import ExportedHF, export_hf
from epilogue.checkpoint.export_quantised import GPTQFormat, export_gptq
from epilogue.checkpoint.files import read_tensors
from epilogue.checkpoint.fingerprint import fingerprint, tensor_bytes
from epilogue.checkpoint.gguf_export import WEIGHT_TYPES, export_gguf
from epilogue.checkpoint.hub import resolve
from epilogue.checkpoint.load import Checkpoint, load_checkpoint
from epilogue.checkpoint.metadata import load_config, load_tokenizer
from epilogue.checkpoint.model_card import CardFacts
from epilogue.checkpoint.save import save_checkpoint
from epilogue.checkpoint.staging import clear_leftovers, whole_file

__all__ = [
    "WEIGHT_TYPES",
    "CardFacts",
    "Checkpoint",
    "ExportedHF",
    "GPTQFormat",
    "adapter_weights",
    "clear_leftovers",
    "export_gguf",
    "export_gptq",
    "export_hf",
    "fingerprint",
    "load_adapter",
    "load_checkpoint",
    "load_config",
    "load_tokenizer",
    "merge_adapter",
    "read_tensors",
    "resolve",
    "save_adapter",
    "save_checkpoint",
    "tensor_bytes",
    "whole_file",
]
