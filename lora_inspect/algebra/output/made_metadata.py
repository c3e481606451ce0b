"""The metadata of an adapter that was made of others: all facts that stay true, and the record of the making.

Of one input the metadata stays, corrected as `convert` corrects it; of several, the part that is true of their sum.
"""

import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lora_inspect.algebra.inputs import Inputs
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.output.output_modules import FileError
from lora_inspect.algebra.output.sum_metadata import metadata_of_several
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import HASH_KEYS, file_sha256
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.metadata.output_metadata import (
    CONVERTED_KEY,
    describe_file,
    standard_metadata,
)
from lora_inspect.reading.metadata.provenance import COMBINED_KEY
from lora_inspect.reading.model.evidence import SCALE_KEY
from lora_inspect.reading.model.settings import spell_settings
from lora_inspect.version import __version__


def input_record(checkpoint: Checkpoint, settings: str) -> dict[str, Any]:
    """Return the identity of an input: the name and the SHA-256 of each of its files, and its settings."""
    hashes = {os.path.basename(file): file_sha256(file, checkpoint.inputs[file]) for file in checkpoint.files}
    sha256: Any = next(iter(hashes.values())) if len(hashes) == 1 else hashes
    return {"file": describe_file(checkpoint.path), "sha256": sha256, "settings": settings}


def input_records(inputs: Inputs) -> list[dict[str, Any]]:
    """Return the record of each adapter; each file is read once for its hash."""
    found: dict[str, dict[str, Any]] = {}
    for one in inputs.adapters:
        checkpoint = one.adapter.checkpoint
        if checkpoint.path not in found:
            found[checkpoint.path] = input_record(checkpoint, "")
    return [
        {**found[one.adapter.checkpoint.path], "settings": spell_settings(one.adapter.settings)}
        for one in inputs.adapters
    ]


def made_record(
    verb: str,
    inputs: Sequence[Mapping[str, Any]],
    rule: RankRule,
    dtype: str,
    errors: FileError,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return the record of an output as JSON, without times, folders and users; `options` are added to it."""
    record = {
        "version": __version__,
        "verb": verb,
        "inputs": list(inputs),
        "rule": rule.to_record(),
        **options,
        "dtype": dtype,
        "error": None if errors.error is None else _digits(errors.error),
        "rounding": _digits(errors.rounding),
    }
    return json.dumps(record, separators=(",", ":"))


def _digits(number: float) -> float:
    return float(f"{number:.6g}")


def made_metadata(
    adapters: Sequence[Adapter], record: str, ranks: set[int], alphas: set[float], is_stabilised: bool
) -> dict[str, str]:
    """Return the metadata of plain LoRA of `ranks` and `alphas` that was made of adapters, with the record of that."""
    if len(adapters) == 1:
        metadata = adapters[0].checkpoint.metadata
        kept = standard_metadata(metadata, {}, ranks=ranks, alphas=alphas, magnitudes=0, algorithms=["lora"])
        kept.pop(CONVERTED_KEY)
        if is_stabilised and "ss_network_args" in metadata:
            kept["ss_network_args"] = metadata["ss_network_args"]
    else:
        kept = metadata_of_several([adapter.checkpoint.metadata for adapter in adapters])
    return kept | {SCALE_KEY: RANK_STABILISED if is_stabilised else STANDARD, COMBINED_KEY: record}


def kept_metadata(metadata: Mapping[str, str], record: str) -> dict[str, str]:
    """Return the metadata of an adapter that keeps its algorithm, ranks and scales, without old hashes."""
    return {key: value for key, value in metadata.items() if key not in HASH_KEYS} | {COMBINED_KEY: record}
