"""What a conversion is told as to people."""

from collections.abc import Sequence
from typing import Any

from lora_inspect.cli import terminal
from lora_inspect.escape import shortened
from lora_inspect.matching.orientation import in_words
from lora_inspect.ops.convert import ConvertResult
from lora_inspect.sentences import listed, some


def tell(result: ConvertResult, with_errors: bool) -> None:
    """Prints all of it; `with_errors` that of each module."""
    terminal.line(headline(result))
    terminal.line(f"{_size(result.source)} to {_size(result.target)}")
    if with_errors:
        for module, error in result.relative_errors.items():
            terminal.line(f"  {shortened(module)}: relative error {error:.3g}")
    if layout := result.target["layout"]:
        terminal.line(f"layout: {layout}, {result.target['scheme']} names")
    terminal.line(loss(result))
    if result.verified:
        terminal.line(
            f"verified: the changes of all {result.verified.modules} modules, read anew, differ from the input's by "
            f"{result.verified.max_relative_error:.1g} at most"
        )
    if words := in_words(result.orientations):
        terminal.line(f"orientation: {words}")
    for remark in result.remarks:
        terminal.line(remark)
    if result.dropped:
        terminal.line(f"left out: {some(result.dropped, 5)}")
    if result.passed_through:
        terminal.aside(f"passed through as they are: {some(result.passed_through, 5)}")


def headline(result: ConvertResult) -> str:
    """What became what."""
    was = _kinds(result.was, "RS-LoRA" if result.source["rslora"] else "LoRA")
    was += " with DoRA" if result.source["dora"] else ""
    becomes = _kinds(result.becomes, "LoRA" if result.target["dora"] else "plain LoRA")
    becomes += " with its magnitudes" if result.target["dora"] else ""
    kinds = was if was == becomes else f"{was} to {becomes}"
    before, after = (f"{side['scheme']} names" for side in (result.source, result.target))
    names = f" of {before}" if before == after else f", {before} to {after}"
    return f"{result.output}: {result.modules} modules{names}, {kinds}"


def _kinds(titles: Sequence[str], lora: str) -> str:
    """The algorithms in words, with what LoRA is to be called."""
    return listed([lora if title == "LoRA" else title for title in titles], "and")


def _size(described: dict[str, Any]) -> str:
    ranks = described["ranks"]
    shown = "/".join(list(ranks)[:8]) + ("/…" if len(ranks) > 8 else "")
    return f"rank {shown}, {described['bytes']:,} bytes" if ranks else f"{described['bytes']:,} bytes"


def loss(result: ConvertResult) -> str:
    """How much the change of the modules lost, in words."""
    known = [error for error in result.relative_errors.values() if error is not None]
    if len(known) < len(result.relative_errors):
        lost = len(result.relative_errors) - len(known)
        if result.biased:
            return f"not exact: the biases of {result.biased} modules are left out"
        return f"not exact: {lost} magnitudes are lost; each row now has the length of W + delta"
    worst = max(known)
    if not result.exact:
        return f"not exact: relative error at most {worst:.3g}"
    return "exact" if worst == 0 else f"exact but for the rounding of float32: relative error at most {worst:.1g}"
