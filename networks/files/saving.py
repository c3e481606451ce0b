"""The writing of a network's weights to a file."""

import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_inspect.files.hashes import sshs_hashes
from lora_inspect.files.outputs import new_file
from lora_inspect.files.safetensors.writer import Content, TensorPlan, write_all, write_contents
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD, alpha_growth
from lora_inspect.reading.metadata.trainers import NETWORK_KEY
from lora_inspect.reading.model.evidence import SCALE_KEY
from lora_inspect.reading.peft.residual_adapters import INCLUDED, INITIAL_FACTORS_KEY
from lora_inspect.version import __version__

from ..kernels.base_weight import is_sharded
from .reading import dtype_name

logger = logging.getLogger(__name__)

_OWN_INIT = "lora_inspect.init_lora_weights"
TLORA_KEY = "lora_inspect.tlora"
_INIT, _RANK_PATTERN, _ALPHA_PATTERN = "ss_init_lora_weights", "ss_rank_pattern", "ss_alpha_pattern"

# A magnitude rounded to half precision would move a whole row by up to 0.2%, as much as training moves it; a gain too.
_FLOAT32 = (".alpha", ".dora_layer.weight", ".lora_magnitude_vector", ".dora_scale", ".rescale")


def option_metadata(
    init_lora_weights: str | None, rank_pattern: Mapping[str, int], alpha_pattern: Mapping[str, float]
) -> dict[str, str]:
    """Return the metadata of a new network's options that leave no trace in the tensors.

    The keys are those of the trainers.
    """
    record = {_INIT: init_lora_weights} if init_lora_weights else {}
    for key, pattern in ((_RANK_PATTERN, rank_pattern), (_ALPHA_PATTERN, alpha_pattern)):
        if pattern:
            record[key] = json.dumps(pattern)
            record["ss_rank_pattern_match_semantics"] = "original_name_fullmatch_first_match"
    return record


def tlora_metadata(min_rank: int, alpha: float) -> dict[str, str]:
    """Return the metadata of T-LoRA's options, which leave no trace in the tensors."""
    return {TLORA_KEY: json.dumps({"min_rank": min_rank, "alpha": alpha})}


def at_twice_the_rank(metadata: Mapping[str, Any], rslora: bool) -> dict[str, Any]:
    """Return a PiSSA network's metadata with the ranks and alphas of its file.

    The file includes the initial factors, so its ranks are doubled.
    """
    growth = alpha_growth(2, rslora)
    grown = {**metadata, INITIAL_FACTORS_KEY: INCLUDED}
    # Programs that know the trainers' key refuse the file for it, which is a plain LoRA by now.
    if init := grown.pop(_INIT, None):
        grown[_OWN_INIT] = init
    for key, factor in (("ss_network_dim", 2), ("ss_network_alpha", growth)):
        if key in grown:
            grown[key] = _times(grown[key], factor)
    for key, factor in ((_RANK_PATTERN, 2), (_ALPHA_PATTERN, growth)):
        if key in grown:
            grown[key] = json.dumps({name: value * factor for name, value in json.loads(grown[key]).items()})
    return grown


def write_weights(
    file: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    metadata: Mapping[str, Any] | None,
    rslora: bool,
) -> None:
    """Write the state dict `tensors` to a file, with factors cast to `dtype` (None: unchanged).

    Alphas and magnitudes stay float32 and flags bool. The file appears complete or not at all, and replaces one of its
    name. A .safetensors file carries `metadata`, the hashes of its tensors, the scale rule and this package's version.
    torch.save writes files of any other name, without these.

    Raises LoraInspectError if the file cannot be written, RuntimeError if this process holds only a part of the
    tensors, and TypeError or ValueError for a dtype that factors cannot be cast to.
    """
    check_dtype(file, dtype)
    if any(is_sharded(tensor) for tensor in tensors.values()):
        raise RuntimeError(
            f"{file}: the network is sharded; call full_tensor() on its state dict in every process, load that into a "
            "network that is not sharded, and save it"
        )
    for note in remove_leftovers(file):
        logger.warning(note)
    cast = {key: _cast(key, tensor, dtype) for key, tensor in tensors.items()}
    if not file.endswith(".safetensors"):
        # Into a file, torch would hide what the disk says under an error of its own.
        content = io.BytesIO()
        torch.save(cast, content)
        with new_file(file, force=True) as descriptor:
            write_all(descriptor, content.getbuffer())
        return
    contents = [
        Content(TensorPlan(key, dtype_name(tensor.dtype), tuple(tensor.shape)), _bytes(tensor))
        for key, tensor in cast.items()
    ]
    complete = {key: str(value) for key, value in (metadata or {}).items()}
    complete[SCALE_KEY] = RANK_STABILISED if rslora else STANDARD
    complete[NETWORK_KEY] = __version__
    write_contents(file, contents, complete | sshs_hashes(contents, complete), force=True)


def check_metadata(file: str, metadata: Mapping[str, Any] | None) -> None:
    """Raise TypeError, about `file`, for metadata that are no mapping of texts."""
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise TypeError(f"{file}: metadata is a {type(metadata).__name__}, but a dict of texts was expected")
    if others := [key for key in metadata if not isinstance(key, str)]:
        raise TypeError(f"{file}: metadata has the key {others[0]!r}, but texts were expected; pass it as a str")


def check_dtype(what: str, dtype: torch.dtype | None) -> None:
    """Raise TypeError, about `what`, for an object that is no dtype, and ValueError for one that is no float."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"{what}: dtype={dtype!r}: a torch.dtype was expected, such as torch.bfloat16")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"{what}: factors in {dtype} would be other numbers; use a floating type, such as torch.float32 "
            "or torch.bfloat16"
        )


def _cast(key: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if key.endswith(_FLOAT32) or not tensor.is_floating_point():
        return tensor.clone()
    return tensor.to(dtype or tensor.dtype, copy=True).contiguous()


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _times(number: Any, factor: float) -> Any:
    """Return the product in as many digits as float32 has.

    A value that is no number stays unchanged: trainers also write "None".
    """
    try:
        return f"{float(number) * factor:.9g}"
    except ValueError:
        return number
