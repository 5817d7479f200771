"""MPT inside transformers: after ``import epilogue.hf`` its Auto classes give this implementation.

    configuration   config.json as transformers holds it, in MosaicML's words
    padding         attention masks of batches, as the attention op wants them
    modeling        the model: forward, loss, generate through transformers' caches
    registration    the Auto classes' tables

Needs the extra ``epilogue[hf]``. Code that comes with a checkpoint is never run, also with trust_remote_code=True.
"""

from epilogue.hf.configuration import MPTConfig
from epilogue.hf.modeling import MPTForCausalLM, MPTModel
from epilogue.hf.registration import register

__all__ = ["MPTConfig", "MPTForCausalLM", "MPTModel", "register"]
