"""AdaMSS of PEFT, recognised but not computed: its file does not show which outputs its factors are for.

Each subspace has a product of its own for some rows of the weight. The rows are not stored: PEFT finds them again
whenever it loads the file, as clusters of a randomised decomposition of the base by scikit-learn's k-means. Source: the
`AdamssLayer` of PEFT 0.21.
"""

from lora_inspect.algorithms.record import Algorithm

# Subspaces are numbered; a file with more of them is recognised as well.
_NUMBERED = 64

ALGORITHM = Algorithm(
    name="adamss",
    title="AdaMSS",
    dialects={
        "peft": {
            "basis": ".adamss_newB",
            **{f"down {number}": f".adamss_A.{number}" for number in range(_NUMBERED)},
            **{f"up {number}": f".adamss_B.{number}" for number in range(_NUMBERED)},
        }
    },
    marks=("basis",),
    peft_type="ADAMSS",
    why=(
        "changes groups of rows that PEFT finds by clustering the base, and the file does not hold them; merge it "
        "with the versions of PEFT, torch and scikit-learn that trained it"
    ),
)
