"""LN tuning: layers, most often norms, trained and saved whole: `ln_tuning_layers.weight`, and their bias.

PEFT has no multiplier between the two. Source: the `LNTuningLayer` of PEFT.
"""

from lora_inspect.algorithms import saved
from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm


def _whole(parameter: str, name: str, title: str) -> Algorithm:
    """Return the algorithm that puts a tensor of a trained layer in the place of the layer's own `parameter`."""
    return saved.ALGORITHM._replace(
        name=name,
        title=title,
        dialects={"peft": {saved.SAVED: f".ln_tuning_layers.{parameter}"}},
        marks=(saved.SAVED,),
        parameter=parameter,
        peft_type="LN_TUNING",
    )


ALGORITHMS = (
    _whole(WEIGHT, "ln_tuning", "LN tuning"),
    _whole(BIAS, "ln_tuning_bias", "LN tuning of a bias"),
)
