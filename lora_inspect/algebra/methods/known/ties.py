"""TIES: trim, elect signs, and take the mean of the agreeing numbers."""

from lora_inspect.algebra.methods.record import Method, agreeing_mean, kept

METHOD = Method(
    name="ties",
    title="TIES",
    paper="Yadav et al. 2023, arXiv 2306.01708",
    formula="mean of the numbers whose sign is that of Σ trim(M_i)",
    merge=lambda cores, settings, name: agreeing_mean([kept(core, settings.density) for core in cores]),
    settings=("density",),
    in_numbers=True,
    conventions=(
        "The numbers are those of cores, not of weights. Each module and input is trimmed by itself, multipliers apply "
        "before, and the trimmed numbers elect: the paper trims all weights of a model together."
    ),
)
