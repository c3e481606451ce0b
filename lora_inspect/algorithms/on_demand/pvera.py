"""PVeRA: VeRA whose activations are drawn in training: W' = W + diag(b) · B · diag(d) · A with what is their mean.

The second half of d and of the rows of A gives the variance, of which PEFT merges nothing, nor uses any in inference
without `sample_at_inference`. Source: the `PveraLayer` of PEFT.
"""

from lora_inspect.algorithms.on_demand.vera import projected

ALGORITHM = projected("pvera", "PVeRA", 2)
