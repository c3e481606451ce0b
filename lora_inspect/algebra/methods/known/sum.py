"""The sum: the method of programs that load several adapters."""

from lora_inspect.algebra.methods.record import Method, total

METHOD = Method(
    name="sum",
    title="sum",
    paper="task arithmetic, arXiv 2212.04089",
    formula="Σ D_i",
    merge=lambda cores, settings, name: total(cores),
    is_linear=True,
)
