"""What configs and metadata say that cannot be taken at its word."""

from collections.abc import Iterator

from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.problem import Finding
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY, embedded_object

# How the keys of metadata begin that say how alpha and rank are to be read.
_DECIDING_METADATA = ("lora_inspect.", "lora_adapter_metadata", "ss_network_", "ss_alpha_", "ss_rank_", "ss_init_")

DAMAGED = "config-damaged"
# The field in which a config names tokens whose rows were trained beside its factors.
_TOKENS = "trainable_token_indices"


def missing_tokens(reading: FileReading) -> Iterator[Finding]:
    """Configs of a LoRA that name tokens whose rows were trained beside its factors, of which the file has nothing."""
    if any(c.algorithm.ties for c in reading.contributions):
        return
    for found in reading.configs:
        if found.config.get(_TOKENS):
            yield Finding(
                "incomplete",
                f"{found.where} says {_TOKENS}, but no rows of tokens are there: they were lost, and the rest is not "
                "the adapter; fetch the file that the trainer saved, or take them out of the config where there were "
                "none",
            )


def damaged_metadata(reading: FileReading) -> Iterator[Finding]:
    """An embedded config that nobody can read: rank, alpha and rule that it said are lost."""
    if embedded_object(reading.checkpoint.metadata) is None:
        yield Finding(
            DAMAGED,
            f"metadata {EMBEDDED_KEY} is no JSON object, so that what it said of alphas is lost, and scales are those "
            "of names without an alpha; fetch the file again",
        )


def refused_patterns(reading: FileReading) -> Iterator[Finding]:
    """Patterns of configs that are not compared with modules."""
    for where, refused in {found.where: found.modules.refused for found in reading.configs}.items():
        if refused:
            yield Finding("pattern", f"{where}: {refused}; {_way_out(refused)}")


def _way_out(refused: str) -> str:
    if refused.startswith("target_modules "):
        return "name the modules in a list, or the file adapter_model.safetensors if the two belong together"
    return "write the plain module path instead"


def contradicting_shards(reading: FileReading) -> Iterator[Finding]:
    """Metadata that decides what the tensors mean, where the files of a set contradict each other."""
    if not reading.claims.modules:
        return
    said: dict[str, tuple[str, str]] = {}
    for file, metadata in reading.checkpoint.file_metadata.items():
        for key in filter(lambda key: key.startswith(_DECIDING_METADATA), metadata):
            first, value = said.setdefault(key, (file, metadata[key]))
            if value != metadata[key]:
                yield Finding(
                    "shards-contradict",
                    f"{first} and {file} are parts of one adapter with different values of {key}; fetch the set again",
                )
