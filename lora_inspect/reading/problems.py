"""The registry of problems: all that can be wrong with a file, in the order in which it is told.

To add one is to add its entry here, its row to the table in docs/reading.md, and a file that has it to the tests.
"""

from collections.abc import Callable, Iterable
from importlib import import_module

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.config_problems import (
    contradicting_shards,
    damaged_metadata,
    missing_tokens,
    refused_patterns,
)
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.key_problems import (
    embeddings,
    foreign_schemes,
    magnitudes,
    several_schemes,
    unclaimed_tensors,
    unfit_tensors,
)
from lora_inspect.reading.model.evidence import INIT_KEY, is_lycoris
from lora_inspect.reading.model.problem import ERROR, NOTE, WARNING, Finding, Problem
from lora_inspect.reading.scale_problems import alpha_setting, missing_alphas, rslora_hint, rule_setting, unknown_scales

Look = Callable[[FileReading], Iterable[Finding]]


class RareLook:
    """A look that finds something only `where` a sign of it is in a file: its `file` in this folder is loaded then."""

    def __init__(self, file: str, name: str, where: Callable[[FileReading], bool]) -> None:
        self.file, self.name, self.where = file, name, where

    def __call__(self, reading: FileReading) -> Iterable[Finding]:
        """What it finds; nothing without the sign."""
        return self.look(reading) if self.where(reading) else ()

    @property
    def look(self) -> Look:
        """The look itself."""
        found: Look = getattr(import_module(f"lora_inspect.reading.{self.file}"), self.name)
        return found


def _has_configs(reading: FileReading) -> bool:
    return bool(reading.configs)


def _has_packed(reading: FileReading) -> bool:
    return any(contribution.algorithm.packed for contribution in reading.contributions)


_missing_weights = RareLook("peft.config_alone", "missing_weights", lambda reading: not reading.checkpoint.files)
_weightless = RareLook(
    "peft.weightless", "weightless", lambda reading: bool(reading.configs or reading.claims.unclaimed)
)
_unbuilt_configs = RareLook("peft.unsupported", "unbuilt_configs", _has_configs)
_unbuilt_algorithms = RareLook(
    "peft.unsupported",
    "unbuilt_algorithms",
    lambda reading: not all(contribution.algorithm.formula for contribution in reading.contributions),
)
_missing_saved = RareLook("peft.saved_tensors", "missing_saved", _has_configs)
_lost_parameters = RareLook("experts.expert_parameters", "lost_parameters", _has_configs)
_residual_bases = RareLook(
    "peft.residual_adapters",
    "residual_bases",
    lambda reading: bool(reading.configs) or INIT_KEY in reading.checkpoint.metadata,
)
_residual_setting = RareLook(
    "peft.residual_adapters", "residual_setting", lambda reading: reading.settings.residual is not None
)
_packing_setting = RareLook(
    "experts.packed_experts", "packing_setting", lambda reading: reading.settings.expert_packing is not None
)
_architecture_setting = RareLook(
    "architecture_setting", "architecture_setting", lambda reading: reading.settings.architecture is not None
)
_packing_hint = RareLook("experts.expert_coherence", "packing_hint", _has_packed)
_unknown_formulas = RareLook(
    "peft.formula_settings",
    "unknown_formulas",
    lambda reading: any(contribution.unsettled for contribution in reading.contributions),
)
_dylora_scale = RareLook(
    "scale.trained_scales", "dylora_scale", lambda reading: is_lycoris(reading.checkpoint.metadata)
)


class Entry(NamedTuple):
    """A kind of problem: the code by which scripts know it, how serious it is, and what finds it.

    What finds several kinds stands in the entry of each.
    """

    code: str
    severity: str
    looks: tuple[Look, ...]


PROBLEMS = (
    Entry("weights-missing", ERROR, (_missing_weights,)),
    Entry("no-weight", ERROR, (_weightless,)),
    Entry("no-adapter", ERROR, (lambda reading: reading.rules.no_adapter(reading.checkpoint.files),)),
    # What explains shapes that fit nothing comes before these.
    Entry("scheme", ERROR, (unfit_tensors, foreign_schemes)),
    Entry("peft-setting", ERROR, (_unbuilt_configs,)),
    Entry("twice", ERROR, (unfit_tensors,)),
    Entry("shape", ERROR, (unfit_tensors,)),
    Entry("incomplete", ERROR, (unfit_tensors, _missing_saved, missing_tokens)),
    Entry("magnitude-shape", ERROR, (unfit_tensors,)),
    Entry("experts", ERROR, (unfit_tensors, _lost_parameters)),
    Entry("algorithm", ERROR, (_unbuilt_configs, _unbuilt_algorithms)),
    Entry("residual-base", ERROR, (_residual_bases,)),
    Entry("pattern", ERROR, (refused_patterns,)),
    Entry("shards-contradict", ERROR, (contradicting_shards,)),
    Entry("dora-conflict", ERROR, (magnitudes,)),
    Entry("dora-missing", ERROR, (magnitudes,)),
    Entry("dora-partial", ERROR, (magnitudes,)),
    Entry("dora-stripped", WARNING, (magnitudes,)),
    Entry(
        "setting-contradicts",
        ERROR,
        (rule_setting, alpha_setting, _packing_setting, _residual_setting, _architecture_setting),
    ),
    Entry("setting-repeats", NOTE, (rule_setting, alpha_setting, _packing_setting, _architecture_setting)),
    Entry("scale-unknown", ERROR, (unknown_scales,)),
    Entry("alpha-missing", WARNING, (missing_alphas,)),
    Entry("formula-unknown", ERROR, (_unknown_formulas,)),
    Entry("config-damaged", WARNING, (damaged_metadata,)),
    Entry("mixed-schemes", WARNING, (several_schemes,)),
    Entry("unclaimed", WARNING, (unclaimed_tensors,)),
    Entry("embeddings", NOTE, (embeddings,)),
    Entry("rslora-hint", NOTE, (rslora_hint,)),
    Entry("expert-hint", NOTE, (_packing_hint,)),
    Entry(
        "trained-scale", NOTE, (_dylora_scale, lambda reading: reading.rules.trained_otherwise(reading.contributions))
    ),
)


def find_problems(reading: FileReading, entries: tuple[Entry, ...] = PROBLEMS) -> tuple[Problem, ...]:
    """All that is wrong with a file; raises KeyError for a finding whose code has no entry."""
    found: dict[str, list[Problem]] = {entry.code: [] for entry in entries}
    severities = {entry.code: entry.severity for entry in entries}
    for look in dict.fromkeys(look for entry in entries for look in entry.looks):
        for code, message, keys in look(reading):
            found[code].append(Problem(code, severities[code], message, keys))
    return tuple(problem for problems in found.values() for problem in problems)
