"""What an unknown option was meant to be. Standard library only."""

import difflib
from collections.abc import Collection

# The least likeness, from 0 to 1, of a slip to the name that was meant: `conv_rank` is none of `conv_alpha`.
_LIKENESS = 0.84

# What other programs call an option.
_ELSEWHERE = {
    "rs_lora": "use_rslora",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "dora_wd": "use_dora",
    "weight_decompose": "use_dora",
    "conv_rank": "conv_dim",
    "conv_lora_dim": "conv_dim",
    "conv_lora_alpha": "conv_alpha",
    "network_reg_dims": "rank_pattern",
    "network_reg_lrs": "lr_pattern",
    "lora_plus_ratio": "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio": "loraplus_lr_ratio",
    "lora_plus_lr_ratio": "loraplus_lr_ratio",
    "exclude_modules": "exclude_patterns",
    "exclude": "exclude_patterns",
    "include": "include_patterns",
    "include_modules": "include_patterns",
    "network_dropout": "dropout",
    "lora_dropout": "dropout",
    "constrain": "constraint",
    # Trainers have these as arguments of their own.
    "rank": "--network_dim",
    "dim": "--network_dim",
    "r": "--network_dim",
    "lora_rank": "--network_dim",
    "lora_dim": "--network_dim",
    "network_rank": "--network_dim",
    "network_dim": "--network_dim",
    "alpha": "--network_alpha",
    "lora_alpha": "--network_alpha",
    "network_alpha": "--network_alpha",
    "lr": "--learning_rate",
    "unet_lr": "--learning_rate",
    "scale_weight_norms": "--scale_weight_norms",
}


def way_out(name: str, known: Collection[str]) -> str:
    """What to write in the place of the unknown `name`: what other programs call so, what it is near to, or all."""
    name = name.lower()
    elsewhere = _ELSEWHERE.get(name, "")
    if elsewhere.startswith("--"):
        return f"it is {elsewhere} of the trainer"
    near = [elsewhere] if elsewhere in known else difflib.get_close_matches(name, known, n=1, cutoff=_LIKENESS)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
