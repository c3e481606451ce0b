"""The metadata that stay true of a sum of several inputs, and the keys that it lacks.

Keys that name the model, and keys on which programs act, stay if all inputs agree in them. Trigger words and tags are
joined, and counts of tags are added. All other keys say something of a training, or of one input, that is not true of
the sum.

`software` of ai-toolkit is no key on which a program acts: InvokeAI loads its names in the same way without it, and a
sum is no file of that trainer.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import parse_json
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.metadata.output_metadata import describe_file
from lora_inspect.sentences import listed, shortened, some

# Keys that name the model, by ModelSpec, sd-scripts and musubi-tuner, ai-toolkit, PEFT and the safetensors library.
_OF_MODEL = (
    *("modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.resolution"),
    *("modelspec.prediction_type", "modelspec.license", "ss_base_model_version", "ss_v2", "ss_sd_model_name"),
    *("ss_sd_model_hash", "ss_new_sd_model_hash", "ss_vae_name", "ss_vae_hash", "ss_new_vae_hash"),
    *("ss_network_spec", "base_model", "base_model_name_or_path", "format"),
)
_JOINED = ("modelspec.trigger_phrase", "modelspec.tags")
_COUNTED = "ss_tag_frequency"


class ActedKey(NamedTuple):
    """A key on which a program acts: `effect` is what the program does, and SOURCES has the file of its code.

    `is_ending` is True if every key with this end counts. `values` is the start of the values that change what the
    program does; with any other value it does the same as without the key.
    """

    key: str
    program: str
    effect: str
    is_ending: bool = False
    values: str = ""

    def is_for(self, key: str) -> bool:
        """Return True if the program acts on this key of a file."""
        return key.endswith(self.key) if self.is_ending else key == self.key


_A1111, _LTX_PIPELINES = "AUTOMATIC1111's web UI", "LTX-2's ltx-pipelines"
# The files that read the keys, and the commits.
SOURCES = {
    _A1111: "extensions-builtin/Lora/network.py, at 0a0efa3fc130",
    "ComfyUI": "comfy_extras/nodes_lt.py, at 8258cfe4d222",
    "ComfyUI-LTXVideo": "iclora.py, at a77fb1dc3832",
    _LTX_PIPELINES: "packages/ltx-pipelines/src/ltx_pipelines/iclora_utils.py, at 1a7db9498b2b",
    "SwarmUI": "src/Text2Image/T2IModelClassSorter.cs, at 002982ce0092",
}
_FACTOR, _FRAMES = "reference_downscale_factor", "reference_temporal_scale_factor"
_SMALLER = "encodes the reference of an IC-LoRA of LTX smaller by this factor, 1 without the key"

ACTED_KEYS: Sequence[ActedKey] = (
    ActedKey(_FACTOR, "ComfyUI", _SMALLER, is_ending=True),
    ActedKey(_FACTOR, "ComfyUI-LTXVideo", _SMALLER),
    ActedKey(_FACTOR, _LTX_PIPELINES, _SMALLER),
    ActedKey(_FRAMES, _LTX_PIPELINES, "takes each n-th frame of the reference, 1 without the key"),
    ActedKey("ss_base_model_version", _A1111, "lists the file for SDXL only if the value begins so", values="sdxl_"),
    ActedKey("ss_v2", _A1111, "lists the file for SD 2 only if the value is this one", values="True"),
    ActedKey("modelspec.architecture", "SwarmUI", "takes the model from it, without the key from tensors"),
)


def programs_acting_on(key: str, values: Iterable[str]) -> list[str]:
    """Return the titles of the programs for which one of these values of the key is not as if the key were missing."""
    values = list(values)
    return [
        acted.program
        for acted in ACTED_KEYS
        if acted.is_for(key) and any(value.startswith(acted.values) for value in values)
    ]


def metadata_of_several(several: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata of a sum of inputs with these metadata, which are at least two."""
    first = several[0]
    kept = {key: first[key] for key in _OF_MODEL if _is_shared(key, several)}
    kept |= {key: text for key, text in first.items() if programs_acting_on(key, [text]) and _is_shared(key, several)}
    for key in _JOINED:
        if words := dict.fromkeys(word for one in several for word in _words(one.get(key, ""))):
            kept[key] = ", ".join(words)
    if counts := _tag_counts(several):
        kept[_COUNTED] = json.dumps(counts)
    return kept


def _is_shared(key: str, several: Sequence[Mapping[str, str]]) -> bool:
    """Return True if all have the key with the same value."""
    return all(key in one for one in several) and len({one[key] for one in several}) == 1


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _tag_counts(several: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """Return the number of images of each folder with each tag, in all inputs together; invalid counts are ignored."""
    found: dict[str, Counter[str]] = {}
    for one in several:
        try:
            folders = parse_json(one.get(_COUNTED, "{}"))
        except ValueError:
            continue
        for folder, tags in folders.items() if isinstance(folders, dict) else ():
            if not isinstance(tags, dict):
                continue
            counted = {tag: count for tag, count in tags.items() if type(count) is int}
            found.setdefault(folder, Counter()).update(counted)
    return {folder: dict(tags) for folder, tags in found.items()}


def conflict_notes(adapters: Sequence[Adapter]) -> Iterator[str]:
    """Yield sentences on the keys that an output lacks because the inputs differ in them.

    A key on which programs act is named where an input lacks it, too.
    """
    several = [adapter.checkpoint.metadata for adapter in adapters]
    conflicts: dict[str, list[str]] = {}
    for key in sorted({key for metadata in several for key in metadata}):
        programs = programs_acting_on(key, (metadata[key] for metadata in several if key in metadata))
        if programs and not _is_shared(key, several):
            conflicts[key] = programs
    names_of_model = (key for key in _OF_MODEL if key not in conflicts)
    differing = [key for key in names_of_model if len({one[key] for one in several if key in one}) > 1]
    if differing:
        yield f"the inputs differ in {', '.join(differing)}, so the output has none of them."
    for key, programs in conflicts.items():
        yield (
            f"{listed(programs)} {'acts' if len(programs) == 1 else 'act'} on {shortened(key)}, but the inputs differ "
            f"in it ({_values_by_file(key, adapters)}), so the output does not have it; write it with lora-inspect "
            "metadata set."
        )


def _values_by_file(key: str, adapters: Sequence[Adapter]) -> str:
    """Return the values of a key with the files that have them: `2 in a.safetensors and none in b.safetensors`."""
    files: dict[str, list[str]] = {}
    for adapter in adapters:
        text = shortened(adapter.checkpoint.metadata.get(key, "none"))
        files.setdefault(text, []).append(describe_file(adapter.checkpoint.path))
    return listed([f"{text} in {some(names, 2)}" for text, names in files.items()])


def dropped_keys(adapters: Sequence[Adapter], kept: Collection[str]) -> list[str]:
    """Return the keys of the inputs' metadata that are not `kept` in the output, sorted."""
    return sorted({key for adapter in adapters for key in adapter.checkpoint.metadata}.difference(kept))
