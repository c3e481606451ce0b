"""The hook of pre-commit: `lora-inspect check` on the adapters of a commit, each of them once."""

import os
import sys
from pathlib import Path

from lora_inspect.start import main as run

_CONFIG, _WEIGHTS, _ENDING = "adapter_config.json", "adapter_model.safetensors", ".safetensors"


def adapters(arguments: list[str]) -> list[str]:
    """Replace each adapter_config.json with the weights next to it, or with its folder if they are not there.

    `./` precedes the name of a file that begins with `-`, which would be an option.
    """
    paths = [_weights_of(Path(one)) if Path(one).name == _CONFIG else one for one in arguments]
    return list(dict.fromkeys(map(_no_option, paths)))


def _weights_of(config: Path) -> str:
    weights = config.with_name(_WEIGHTS)
    return str(weights if weights.exists() else config.parent)


def _no_option(argument: str) -> str:
    is_path = argument.startswith("-") and (argument.endswith(_ENDING) or os.path.isdir(argument))
    return os.path.join(os.curdir, argument) if is_path and os.path.exists(argument) else argument


def main() -> None:
    """Check the files and options of the command line, and end the process with the status of `check`."""
    sys.argv[1:] = ["check", *adapters(sys.argv[1:])]
    run()
