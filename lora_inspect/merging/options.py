"""What a user may choose of a merge."""

from dataclasses import dataclass, field

from lora_inspect.matching.orientation import Answers
from lora_inspect.reading.chosen_modules import Choice
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.weights_toml import WeightsFile


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """What the user may choose. `dtype` is a safetensors name; None keeps the base's.

    `touched_dtype` is that of the weights alone that a change touches; at most one of both is chosen. `only` are
    components, all where it is empty. `transposed` says by globs how the base stores the square weights whose
    orientation the evidence leaves open. `choice` are the modules that --include and --exclude leave, `weights` the
    file with more settings of strength. `hash_base` reads the base for its hash as well. Changed weights are
    rounded to the nearest number, or where there is a `seed` stochastically by that. With `accept_loss` the output may
    keep little of an adapter.
    """

    dtype: str | None = None
    only: tuple[str, ...] = ()
    transposed: Answers = field(default_factory=dict)
    allow_unmatched: bool = False
    dora_rule: str | None = None
    settings: Settings = field(default_factory=Settings)
    choice: Choice = field(default_factory=Choice)
    weights: WeightsFile | None = None
    hash_base: bool = False
    touched_dtype: str | None = None
    seed: int | None = None
    accept_loss: bool = False
