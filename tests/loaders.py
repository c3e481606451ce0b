"""What the real libraries load of a file: the layers of a network with it, and how many of its tensors they hold."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers_families
from lycoris.wrapper import create_lycoris_from_weights
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from lora_inspect.architectures import by_name


class Library(NamedTuple):
    """A library that loads the files of a scheme into a network; `load` returns how many tensors are there then.

    `families` have a tiny model that it loads them into. `options` are what a conversion of DoRA has to be told.
    """

    families: Sequence[str]
    load: Callable[[str, nn.Module, Path], int]
    options: tuple[str, ...] = ()
    suffix: str = ".safetensors"


def in_diffusers(family: str, network: nn.Module, file: Path) -> int:
    """As the pipeline of the family, or as the model itself where no pipeline loads adapters of it."""
    name = by_name(family).pipeline_name
    if family in diffusers_families.LOADERS:
        diffusers_families.load(family, {name: network}, file)
    else:
        network.load_lora_adapter(str(file), prefix=name, use_safetensors=True)  # type: ignore[operator]
    return adapter_parameters(network)


def in_peft(family: str, network: nn.Module, folder: Path) -> int:
    """As PEFT; it only warns of keys that are missing or unexpected."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # PEFT itself uses what transformers deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        PeftModel.from_pretrained(network, str(folder)).eval()
    return adapter_parameters(network)


def in_lycoris(family: str, network: nn.Module, file: Path) -> int:
    """As LyCORIS's wrapper, which logs every module that it finds."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    adapter, _ = create_lycoris_from_weights(1.0, str(file), network)
    adapter.apply_to()
    # The layers that it took over keep it.
    adapter.eval()
    return sum(not name.endswith(".scalar") for name in adapter.state_dict())


def adapter_parameters(network: nn.Module) -> int:
    """How many tensors of adapters PEFT's layers in the network hold."""
    return sum("lora_" in name for name, _ in network.named_parameters())


def tensors_in(output: Path) -> dict[str, Any]:
    """The tensors of a file, or of PEFT's folder."""
    found: dict[str, Any] = load_file(output / "adapter_model.safetensors" if output.is_dir() else output)
    return found


LIBRARIES = {
    "diffusers": Library(sorted(diffusers_families.FAMILIES), in_diffusers),
    "peft": Library(sorted(diffusers_families.FAMILIES), in_peft, suffix=""),
    "lycoris": Library(sorted(diffusers_families.FAMILIES), in_lycoris, options=("--keep-dora",)),
}
