"""PSOFT of PEFT, recognised but not computed: its file does not determine its change.

W' = W + B · (R - I) · A, where the first r singular triples of the base make A and B. PEFT takes them again whenever it
loads the file. The sign of each pair of singular vectors is free, and LAPACK's two drivers choose it differently. R is
not diagonal, so that other signs are another change. Source: the `PsoftLayer` of PEFT 0.21.
"""

from lora_inspect.algorithms.record import Algorithm

ALGORITHM = Algorithm(
    name="psoft",
    title="PSOFT",
    dialects={"peft": {"rotation": ".psoft_R.weight", "left": ".psoft_R.vector_b", "right": ".psoft_R.vector_a"}},
    peft_type="PSOFT",
    why=(
        "turns the weight in the basis of its singular vectors, but the file does not hold their signs, and methods "
        "of decomposition choose them differently; merge it with PEFT where it was trained"
    ),
)
