"""DARE, and TIES's election of signs among the survivors."""

from lora_inspect.algebra.methods.record import Method, agreeing_mean, survivors

METHOD = Method(
    name="dare-ties",
    title="DARE with TIES",
    paper="arXiv 2311.03099, with the election of arXiv 2306.01708",
    formula="mean of the numbers whose sign is that of Σ M_i ⊙ mask_i / density",
    merge=lambda cores, settings, name: agreeing_mean(survivors(cores, settings, name)),
    settings=("density", "seed"),
    in_numbers=True,
    conventions="As of DARE and of TIES; nothing is trimmed by size.",
)
