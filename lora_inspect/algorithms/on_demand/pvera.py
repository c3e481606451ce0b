"""PVeRA: VeRA with activations that are drawn in training; the change has their mean.

W' = W + diag(b) · B · diag(d) · A, with the first halves of d and A. The second half of d and of the rows of A gives
the variance. PEFT merges none of it, nor uses any in inference without `sample_at_inference`. Source: the `PveraLayer`
of PEFT.
"""

from lora_inspect.algorithms.on_demand.vera import projected

ALGORITHM = projected("pvera", "PVeRA", 2)
