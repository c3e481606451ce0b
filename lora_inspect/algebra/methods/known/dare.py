"""DARE: drop numbers at random, and scale the others."""

from lora_inspect.algebra.methods.record import Method, survivors, total

METHOD = Method(
    name="dare",
    title="DARE",
    paper="Yu et al. 2023, arXiv 2311.03099",
    formula="Σ M_i ⊙ mask_i / density",
    merge=lambda cores, settings, name: total(survivors(cores, settings, name)),
    settings=("density", "seed"),
    in_numbers=True,
    conventions=(
        "The density is the share that is kept, as in PEFT and mergekit; the paper names the share that is dropped. "
        "The numbers are those of cores. mergekit keeps the sum of the sizes instead of dividing by the density."
    ),
)
