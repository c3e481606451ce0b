"""What the user of a conversion chooses among, by the words of the command line."""

# What `--algorithm` makes of changes.
ALGORITHMS = (LORA, FULL) = ("lora", "full")
# Layouts that have names of their own, and what modules are in a family that only fuses some of them.
NAMED = (ORIGINAL, OF_DIFFUSERS) = ("original", "diffusers")
ARRANGED = (FUSED, SPLIT) = ("fused", "split")
LAYOUTS = (*NAMED, *ARRANGED)
# Where the experts of a layer are: in one module, or each in its own.
EXPERT_LAYOUTS = (ALL_EXPERTS, SINGLE_EXPERTS) = ("all-experts", "single-experts")
