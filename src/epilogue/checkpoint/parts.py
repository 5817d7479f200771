"""A checkpoint read in parts: named tensors when they are needed, in place of the whole model at once."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from epilogue.checkpoint.dtypes import check_storage, convert
from epilogue.checkpoint.files import read_tensors
from epilogue.checkpoint.huggingface import EMBEDDING, HEAD, own_name
from epilogue.checkpoint.inventory import Departures, wanted_shapes
from epilogue.checkpoint.metadata import load_config
from epilogue.errors import CheckpointError


class Parts:
    """The weights of a dense checkpoint by our own names.

    Names and shapes are checked when it is made. No tensor is held between two calls.

    Args:
        directory: of the checkpoint.

    Raises:
        CheckpointError: files missing or damaged, tensors missing, unknown or misshapen, or quantised already.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.config = directory, load_config(directory)
        if self.config.quantization is not None:
            raise CheckpointError(f"{directory} is quantised already; start from the dense model it was made of")
        self.dtypes: dict[str, torch.dtype] = {}
        wanted, found = wanted_shapes(self.config), Departures()
        for foreign, tensor in read_tensors(directory):
            name = own_name(foreign, is_tied=self.config.tie_word_embeddings)
            if name is None:
                continue
            check_storage(f"{foreign} of {directory}", tensor)
            if name not in wanted:
                found.unknown.append(foreign)
            elif tensor.shape != wanted[name]:
                found.add_misshapen(foreign, tensor.shape, wanted[name])
            elif name in self.dtypes and not (name == EMBEDDING and HEAD in foreign):
                found.repeated.append(foreign)
            else:
                self.dtypes[name] = tensor.dtype
            del tensor
        found.missing = [name for name in wanted if name not in self.dtypes]
        if found:
            raise CheckpointError(f"the weights in {directory} do not fit its config ({found})")

    def read(self, names: Iterable[str], *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Copies of these tensors, in their own dtype or another."""
        wanted = set(names)
        got: dict[str, Tensor] = {}
        for foreign, tensor in read_tensors(self.directory):
            name = own_name(foreign, is_tied=self.config.tie_word_embeddings)
            if name in wanted and name not in got:
                got[name] = convert(name, tensor, dtype=dtype or tensor.dtype, device="cpu")
            del tensor
            if len(got) == len(wanted):
                break
        return got
