"""The mean of the inputs."""

from lora_inspect.algebra.methods.record import Method, total

METHOD = Method(
    name="mean",
    title="mean",
    paper="model soups, arXiv 2203.05482",
    formula="Σ D_i / T",
    merge=lambda cores, settings, name: total(cores) / len(cores),
    is_linear=True,
    conventions="The number of inputs divides, however many of them have the module.",
)
