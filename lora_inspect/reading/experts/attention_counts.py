"""What is said of the output layers of torch's MultiheadAttention, whose change PEFT adds twice."""

from collections.abc import Iterator

from lora_inspect.algorithms.attention_lora import OUT_PROJ
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.evidence import Evidence


def about_attention(reading: FileReading) -> Iterator[Evidence]:
    """How many there are."""
    count = sum(one.algorithm is OUT_PROJ for one in reading.contributions)
    if count:
        says = f"{count} modules are the out_proj of a MultiheadAttention, whose change PEFT adds twice"
        yield Evidence("scale", says, "names and shapes")
