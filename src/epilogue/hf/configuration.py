"""config.json as transformers holds it: MosaicML's fields as attributes, attn_config as a table that can be edited."""

import copy
from typing import Any

from transformers import PreTrainedConfig

from epilogue.errors import CheckpointError
from epilogue.model import MPTConfig as Architecture
from epilogue.model import config_from_dict, config_to_dict

_ATTENTION_NAMES = ("torch", "flash", "triton", "flex")
_OWN = {
    key: value for key, value in config_to_dict(Architecture()).items() if key not in ("model_type", "architectures")
}
_OF_GENERATION = {"init_device": "cpu", "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# What transformers keeps in every config, and what it does there is its own affair.
_OF_TRANSFORMERS = {*PreTrainedConfig().to_dict(), "quantization_config"} - set(_OWN)


class MPTConfig(PreTrainedConfig):
    """Any config.json of the MPT family. Fields have MosaicML's names and defaults; unknown ones are kept.

    ``attn_config`` is a plain table: ``config.attn_config['attn_impl'] = 'triton'`` works as on the model card.
    Nothing is checked before ``architecture`` is asked for, which a model does when it is built.
    """

    model_type = "mpt"
    attribute_map = {  # noqa: RUF012 - transformers reads it from the class
        "num_attention_heads": "n_heads",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "layer_norm_epsilon": "norm_eps",
    }
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, **settings: Any) -> None:
        settings.pop("auto_map", None)  # points at code, which is not run and would not be saved
        attention: dict[str, Any] = dict(settings.pop("attn_config", _OWN["attn_config"]) or {})
        if type(clip := attention.get("clip_qkv")) is int:  # as released; plain transformers wants a float
            attention["clip_qkv"] = float(clip)
        self.attn_config = attention
        for name, default in (_OWN | _OF_GENERATION).items():
            if name != "attn_config":
                setattr(self, name, copy.deepcopy(settings.pop(name, default)))
        super().__init__(**settings)

    def architecture(self) -> Architecture:
        """The same, checked.

        Raises:
            CheckpointError: an unknown key, a switch that is not run here, an impossible value, or an attn_impl that
                is none of torch, flash, triton and flex.
        """
        raw = {key: value for key, value in self.to_dict().items() if key not in _OF_TRANSFORMERS}
        found = config_from_dict(raw | {"model_type": "mpt"}, where="the config")
        name = found.attn_config.attn_impl
        if name not in _ATTENTION_NAMES:
            raise CheckpointError(f"the config says attn_impl = {name!r}; known are {', '.join(_ATTENTION_NAMES)}")
        return found
