"""Bone, as PEFT 0.14 to 0.18 called MiSS: the same two formulas under another name, without the mini form.

Source: the `BoneLayer` of PEFT 0.14 and 0.17; MiSS reads their files once the keys are renamed.
"""

from lora_inspect.algorithms.on_demand import miss

ALGORITHMS = tuple(
    algorithm._replace(
        name=algorithm.name.replace("miss", "bone"),
        title=algorithm.title.replace("MiSS", "Bone"),
        dialects={"peft": {"block": ".bone_block"}},
        peft_type="BONE",
        writers="PEFT 0.14 to 0.18",
        variant=None,
    )
    for algorithm in (miss.DEFAULT, miss.BAT)
)
