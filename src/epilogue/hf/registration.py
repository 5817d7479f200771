"""The Auto classes' tables: the model type "mpt" leads here instead of to transformers' own MPT."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from epilogue.hf.configuration import MPTConfig
from epilogue.hf.modeling import MPTForCausalLM, MPTModel


def register() -> None:
    """Enter the classes. Done on import; a second time changes nothing."""
    AutoConfig.register(MPTConfig.model_type, MPTConfig, exist_ok=True)
    AutoModel.register(MPTConfig, MPTModel, exist_ok=True)
    AutoModelForCausalLM.register(MPTConfig, MPTForCausalLM, exist_ok=True)


register()
