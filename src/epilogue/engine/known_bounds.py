"""What eviction may rely on, kept beside the checkpoint: it takes a second and a half for every layer of a 7B model.

Such bounds are certificates: what they allow to forget is forgotten. So a file of them counts only for the very model
it was made of (``fingerprint``), its storage and this program's way of computing them, and only whole; otherwise they
are computed again.
"""

import logging
import os
from pathlib import Path

import platformdirs
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from epilogue.checkpoint import clear_leftovers, fingerprint, tensor_bytes, whole_file
from epilogue.kernels.paged_attention import Storage
from epilogue.model import MPT, EvictionBounds, eviction_bounds, num_parameters

VERSION = "1"
"""Changes whenever ``model.weight_bounds`` would compute other numbers of the same weights."""
# Below that computing takes less than a second, and nothing is gained by one more file.
_LEAST_PARAMETERS = 50_000_000
_TENSORS = ("root_LHDD", "offset_LHD", "error_LH", "floor_LH", "largest_LH")
_LOG = logging.getLogger(__name__)


def known_bounds(
    model: MPT, storage: Storage, directory: Path | None, *, least_parameters: int = _LEAST_PARAMETERS
) -> EvictionBounds:
    """``model.eviction_bounds``, from a file if there is one of this model, else computed and kept in one.

    Args:
        model: with its weights as they are used.
        storage: of keys and values.
        directory: of the checkpoint. Where that cannot be written, or is None, the user's cache folder is used.
        least_parameters: of a smaller model they are computed, and no file is looked for.
    """
    if num_parameters(model.config) < least_parameters:
        return eviction_bounds(model, storage)
    name = f"eviction-bounds-{VERSION}-{storage}-{fingerprint(model)}.safetensors"
    places = [place for place in (directory, _cache_folder()) if place is not None]
    for place in places:
        if (bounds := _read(place / name, model)) is not None:
            return bounds
    bounds = eviction_bounds(model, storage)
    _keep(bounds, name, places)
    return bounds


def _cache_folder() -> Path:
    return platformdirs.user_cache_path("epilogue", appauthor=False) / "bounds"


def _read(path: Path, model: MPT) -> EvictionBounds | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            said = file.metadata() or {}
        # The name is in the digest, so a renamed file of another model is none of this one's.
        if said.get("digest") != _digest(path.name, said.get("clip", ""), tensors):
            raise ValueError("its checksum is wrong")
        return EvictionBounds(
            clip=float(said["clip"]), **{name: tensor.to(model.device, copy=True) for name, tensor in tensors.items()}
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _LOG.warning("%s is not usable (%s); the bounds in it are computed again", path, error)
        return None


def _keep(bounds: EvictionBounds, name: str, places: list[Path]) -> None:
    """In the first place that takes it; none is no harm."""
    tensors = {tensor: getattr(bounds, tensor).cpu().contiguous() for tensor in _TENSORS}
    clip = repr(bounds.clip)
    content = save(tensors, metadata={"clip": clip, "digest": _digest(name, clip, tensors)})
    for place in places:
        try:
            if place == _cache_folder():
                place.mkdir(parents=True, exist_ok=True)
            elif not os.access(place, os.W_OK):
                continue
            clear_leftovers(place)
            with whole_file(place / name, mode=0o644) as file:
                file.write(content)
            return
        except OSError as error:
            _LOG.warning("%s cannot be written (%s); its bounds are computed every time", place / name, error)


def _digest(name: str, clip: str, tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128(f"{name} {clip}".encode())
    for tensor_name in _TENSORS:
        tensor = tensors[tensor_name]
        digest.update(f"\n{tensor_name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
