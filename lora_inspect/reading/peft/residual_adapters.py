"""Adapters of a residual base: the original model less the part that moved into their factors.

PiSSA moves the best approximation of their rank, OLoRA the first columns of a QR decomposition. Both can be computed
again from the original base; other initialisations depend on random numbers, on data or on a quantised base. Metadata
may name the initialisation. Source: `LoraLayer.reset_lora_parameters` and its callees in PEFT.
"""

from collections.abc import Iterator, Mapping

from lora_inspect.algorithms import lora
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import CONTRADICTS, INIT_KEY, Evidence, RawProblem
from lora_inspect.reading.peft.config_lookup import Speakers
from lora_inspect.reading.state import Reading

# Those whose part can be computed again from the original base.
PISSA, OLORA = "pissa", "olora"
# What our training network says of PiSSA weights that are a plain LoRA on the original base.
INITIAL_FACTORS_KEY, INCLUDED = "lora_inspect.initial_factors", "included"


def computed_init(init: str) -> str | None:
    """Return the initialisation by any of its names, if its part can be computed again; else None."""
    return OLORA if init.lower() == OLORA else (PISSA if init == PISSA else None)


def residual_init(metadata: Mapping[str, str]) -> str | None:
    """Return the initialisation with a residual base from the metadata; None if there is none."""
    init = metadata.get(INIT_KEY, "")
    return init if init.startswith(PISSA) and metadata.get(INITIAL_FACTORS_KEY) != INCLUDED else None


_METADATA = f"metadata {INIT_KEY}"
# Why the original base alone does not give the part that was moved, by how the names of initialisations begin.
_LOST = {
    "pissa_niter": "depends on random numbers, which no file holds",
    "corda": "depends on data, which no file holds",
    "lora_ga": "depends on data, which no file holds",
    "loftq": "depends on the quantisation of the base",
}
_RESIDUAL_BASE = "add :residual=yes to the path if the base is the residual one"


def note_residuals(reading: Reading) -> Reading:
    """Record the initialisation that moved a part of the base into each module, and whether the base is the rest."""
    modules, configs = reading.modules, reading.configs
    metadata, is_given = reading.checkpoint.metadata, reading.settings.residual
    speakers = Speakers(configs)
    of_all = residual_init(metadata)

    def told(contribution: Contribution) -> Contribution:
        said = next((lora.residual_init(found.config) for found in speakers.of(contribution)), None)
        init = said or of_all
        # The factors of an Embedding start as always.
        if not init or contribution.algorithm.name != "lora":
            return contribution
        return contribution._replace(residual=computed_init(init) or init, on_residual=bool(is_given))

    if not of_all and not any(lora.residual_init(found.config) for found in configs):
        return reading
    own = {
        name: module._replace(contributions=tuple(map(told, module.contributions))) for name, module in modules.items()
    }
    return reading._replace(modules=own)


def _stated_initialisations(reading: Reading) -> list[tuple[str, str]]:
    """Return the stated initialisations, each with its place."""
    inits = [(found.where, lora.residual_init(found.config)) for found in reading.configs]
    inits.append((_METADATA, residual_init(reading.checkpoint.metadata)))
    return [(where, init) for where, init in inits if init]


def about_residuals(reading: Reading) -> Reading:
    """Add the base that the factors change to the evidence."""
    taken = "the given residual base" if reading.settings.residual else "the rest that it leaves of the original base"
    return reading.with_evidence(
        Evidence("base", f"the factors come from the {init} initialisation and change {taken}", where)
        for where, init in _stated_initialisations(reading)
    )


def residual_bases(reading: Reading) -> Iterator[RawProblem]:
    """Yield problems of parts that were moved out of the base and that cannot be computed from it."""
    if reading.settings.residual:
        return
    for where, init in _stated_initialisations(reading):
        if computed_init(init):
            continue
        lost = next((why for start, why in _LOST.items() if init.lower().startswith(start)), "is unknown")
        yield RawProblem(
            "residual-base",
            f"{where} says the {init} initialisation, so the tensors change a residual base, and the "
            f"part taken out of the original one {lost}; {_RESIDUAL_BASE}, or convert the adapter to "
            "plain LoRA with the program that trained it",
        )
    moved = [contribution for contribution in reading.contributions if computed_init(contribution.residual)]
    for odd, why in _ODD.items():
        keys = tuple(contribution.module.key for contribution in moved if why(contribution))
        if keys:
            yield RawProblem("residual-base", f"{keys[0]} {odd.format(moved[0].residual)}; {_RESIDUAL_BASE}", keys[:5])


def _is_no_layer(contribution: Contribution) -> bool:
    return not contribution.is_linear or contribution.rows is not None or contribution.algorithm.experts > 0


def _has_no_root(contribution: Contribution) -> bool:
    return contribution.residual == PISSA and contribution.scale is not None and contribution.scale <= 0


_ODD = {
    "is not a plain LoRA of a Linear layer, and the {} initialisation is defined only for that": _is_no_layer,
    "has a scale that is not above 0, which rules out the {} initialisation": _has_no_root,
}


def residual_setting(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem if the setting names a residual base but the factors have none."""
    said = reading.settings.residual
    if said is not None and not _stated_initialisations(reading):
        spelled = f"residual={'yes' if said else 'no'}"
        yield RawProblem(
            CONTRADICTS, f"{spelled} cannot apply, as the file does not report a residual base; leave it out"
        )
