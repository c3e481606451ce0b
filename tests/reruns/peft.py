"""PEFT: folders of every kind that it makes of the tests' language models, and the outputs with them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import language_models
import peft_kinds
from program_grid import Observed

from lora_inspect.programs.verdict import NOTHING, OTHER, PARTLY, REFUSED, SAME, STRENGTH, Verdict
from reruns import Asked, Case

_OTHERWISE = (NOTHING, OTHER, PARTLY, STRENGTH)


def version() -> str:
    """That of the package."""
    from importlib.metadata import version as version_of

    return version_of("peft")


def _seen(model: str, folder: peft_kinds.Folder, verdict: Verdict) -> Observed:
    """Outputs tell only whether they are those that were trained: else the verdict of the record stands."""
    from peft import PeftModel

    network = language_models.model(model)
    try:
        logits = language_models.output(PeftModel.from_pretrained(network, str(folder.path)).eval())
    except (ValueError, RuntimeError, KeyError) as error:
        return Observed(REFUSED, says=f"{type(error).__name__}: {error}")
    if folder.is_like_trained(logits):
        return Observed(SAME)
    return Observed(verdict.verdict, verdict.factors) if verdict.verdict in _OTHERWISE else Observed(OTHER)


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """A folder of every kind for every model that PEFT makes it of; the families are the names of the models."""
    for model in peft_kinds.MODELS:
        for kind, made in peft_kinds.KINDS.items():
            if not asked.takes(model, kind):
                continue
            own = folder / f"{model}-{kind}"
            own.mkdir()
            try:
                adapter = peft_kinds.make(model, made, own)
            except (ValueError, NotImplementedError, TypeError):
                continue
            yield Case(model, "peft", kind, Path(adapter.path), partial(_seen, model, adapter))
