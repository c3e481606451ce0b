"""Metadata that outputs carry: entries that stay true, corrected entries, and the origin of the file."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lora_inspect.maths.scaling import STANDARD
from lora_inspect.reading.metadata.provenance import MERGED_KEY
from lora_inspect.reading.model.evidence import ALPHA_OPTIONS, SCALE_KEY, network_args
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY
from lora_inspect.reading.scale.dora_evidence import MAGNITUDES_KEY, NORMS_KEY
from lora_inspect.reading.scale.scale_records import FOLDED_KEY
from lora_inspect.version import __version__

HASHES = ("sshs_model_hash", "sshs_legacy_hash")
CONVERTED_KEY = "lora_inspect.converted"

# Hashes of tensors that are no longer these.
_STALE_HASHES = (*HASHES, "modelspec.hash_sha256")
# Options that said how the stored alpha was to be read; in a standard file alpha/rank says it all.
_SCALE_OPTIONS = ("use_rslora", "rs_lora", *ALPHA_OPTIONS, "conv_alpha", "split_qkv")
_DORA_OPTIONS = ("use_dora", "dora_wd", "weight_decompose", "wd_on_output", "wd_on_out")
# Algorithms that trainers name as their options do, those of which one may be several here, and what LoKr is told.
_NAMED_IN_OPTIONS = ("loha", "lokr")
_OF_SEVERAL = ("glora", "full", "oft", "diag-oft", "boft", "ia3", "tlora")
_OPTIONS_OF_LOKR = ("factor", "decompose_both", "full_matrix", "unbalanced_factorization")
# What trainers write where modules differ.
_SEVERAL = "Dynamic"


def merged_metadata(metadata: Mapping[str, str], record: str) -> dict[str, str]:
    """Return a base's metadata after a merge: without the hashes of old tensors, with the merge `record`."""
    return {key: value for key, value in metadata.items() if key not in _STALE_HASHES} | {MERGED_KEY: record}


def standard_metadata(
    metadata: Mapping[str, str],
    source: Mapping[str, Any],
    *,
    ranks: set[int],
    alphas: set[float],
    magnitudes: int,
    algorithms: Collection[str],
    embedded: str | None = None,
    folded: str | None = None,
    norms: str | None = None,
) -> dict[str, str]:
    """Return an adapter's metadata after `convert --to-standard`: rank, alpha and options of the tensors now.

    `embedded` are the configs that are true of them, if any, and `folded` is the record of the scales in their factors;
    `norms` is the record of a base that magnitudes are over. `magnitudes` is the number of kept magnitudes, and
    `algorithms` are those of its modules by name.
    """
    stale = {*_STALE_HASHES, EMBEDDED_KEY, FOLDED_KEY, MAGNITUDES_KEY, NORMS_KEY, "ss_alpha_pattern"}
    kept = {key: value for key, value in metadata.items() if key not in stale}
    if "ss_network_dim" in kept:
        kept["ss_network_dim"] = one_or_several(ranks)
    if "ss_network_alpha" in kept:
        kept["ss_network_alpha"] = one_or_several(alphas)
    if "ss_rank_pattern" in kept and len(ranks) == 1:
        del kept["ss_rank_pattern"]
    if "ss_network_args" in kept:
        gone = _SCALE_OPTIONS if magnitudes else (*_SCALE_OPTIONS, *_DORA_OPTIONS)
        args = {k: v for k, v in network_args(metadata).items() if k not in gone}
        kept["ss_network_args"] = json.dumps(_without_other_algorithms(args, algorithms))
    if module := kept.get("ss_network_module"):
        kept["ss_network_module"] = _module_of(module, algorithms)
    records = ((EMBEDDED_KEY, embedded), (FOLDED_KEY, folded), (NORMS_KEY, norms))
    kept |= {key: value for key, value in records if value is not None}
    if magnitudes:
        kept[MAGNITUDES_KEY] = str(magnitudes)
    kept[SCALE_KEY] = STANDARD
    kept[CONVERTED_KEY] = json.dumps({"version": __version__, **source})
    return kept


def _without_other_algorithms(args: dict[str, Any], algorithms: Collection[str]) -> dict[str, Any]:
    """Return LyCORIS's options, which name plain LoRA if the modules are that and none has their algorithm any more."""
    if not _is_lora_now(str(args.get("algo", "")).lower(), algorithms):
        return args
    return {**{k: v for k, v in args.items() if k not in _OPTIONS_OF_LOKR}, "algo": "lora"}


def _module_of(module: str, algorithms: Collection[str]) -> str:
    """Return the network that a trainer names, changed to one of plain LoRA if the modules are that."""
    package, dot, name = module.rpartition(".")
    return f"{package}{dot}lora" if _is_lora_now(name, algorithms) else module


def _is_lora_now(named: str, algorithms: Collection[str]) -> bool:
    if named in _OF_SEVERAL:
        return set(algorithms) == {"lora"}
    return named in _NAMED_IN_OPTIONS and named not in algorithms and "lora" in algorithms


def without_scale_options(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return an adapter's metadata without options on how to read an alpha, for a scale in its factors."""
    kept = dict(metadata)
    if "ss_network_args" in kept:
        kept["ss_network_args"] = json.dumps({k: v for k, v in network_args(kept).items() if k not in _SCALE_OPTIONS})
    return kept


def describe_file(path: str) -> str:
    """Return a file's name in provenance: only the last part of its path."""
    return os.path.basename(os.path.abspath(path))


def one_or_several(values: Iterable[float]) -> str:
    """Return a rank or alpha of all modules as trainers write it: the number, or a word if they differ."""
    distinct = set(values)
    return f"{distinct.pop():.9g}" if len(distinct) == 1 else _SEVERAL
