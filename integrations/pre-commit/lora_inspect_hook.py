"""The hook of pre-commit: `lora-inspect check` on the adapters of a commit, each of them once."""

import sys
from pathlib import Path

from lora_inspect.start import main as run

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapters(arguments: list[str]) -> list[str]:
    """Replace each adapter_config.json with the weights next to it, or with its folder if they are not there."""
    paths = [_weights_of(Path(one)) if Path(one).name == _CONFIG else one for one in arguments]
    return list(dict.fromkeys(paths))


def _weights_of(config: Path) -> str:
    weights = config.with_name(_WEIGHTS)
    return str(weights if weights.exists() else config.parent)


def main() -> None:
    """Check the files and options of the command line, and end the process with the status of `check`."""
    sys.argv[1:] = ["check", *adapters(sys.argv[1:])]
    run()
