"""The nodes: each names files of ComfyUI's folders, calls the API of lora-inspect on them and shows its account.

Nodes that write also apply the written file to a model and a text encoder, as ComfyUI's own loader would.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths

import lora_inspect
from lora_inspect import ConvertResult, ExtractResult, LoraInspectError, RefusedError, SumResult

from .folders import MODEL_KINDS, OUTPUT_FOLDERS, lora_path, model_path, output_path, state_of, wrong_output_name

CATEGORY = "lora-inspect"
# The choice of a slot without a file.
NO_FILE = "None"
SLOTS = range(1, 7)
# The rules for the ranks of a resized file: the keyword of the API by the name in the list.
RULES = {"rank": "rank", "energy kept": "energy", "largest error": "max_error", "megabytes": "size"}
# The answers about a fact that a file may leave open.
FILE_TELLS = "as the file says"
ANSWERS = {FILE_TELLS: None, "yes": True, "no": False}
# Names, suffixes and scales in the outputs are those that ComfyUI applies as they were trained.
PROGRAM = "comfyui"

Inputs = Mapping[str, Any]
Made = SumResult | ConvertResult | ExtractResult
_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


def in_one_sentence(work: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
    """Wrap the work of a node: an error of lora-inspect keeps its sentence and loses the calls that led to it."""

    @wraps(work)
    def run(*args: _Parameters.args, **inputs: _Parameters.kwargs) -> _Returned:
        try:
            return work(*args, **inputs)
        except LoraInspectError as error:
            raise error.with_traceback(None) from None

    return run


def watching() -> Callable[[int, int], None]:
    """Return a progress function that moves ComfyUI's bar, and ends the work if the user cancels."""
    bar = comfy.utils.ProgressBar(1)

    def watch(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return watch


def lora_choice(tooltip: str, is_optional: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Return the input that chooses a file of the `loras` folders, or none of them."""
    names = folder_paths.get_filename_list("loras")
    return ([NO_FILE, *names] if is_optional else names), {"tooltip": tooltip}


def facts() -> dict[str, Any]:
    """Return the inputs that settle facts a file leaves open, by the keywords that errors name."""
    return {
        "architecture": (
            "STRING",
            {"default": "", "tooltip": "The model family, such as sd15; empty if files tell it."},
        ),
        "rslora": (list(ANSWERS), {"tooltip": "Scale of alpha/sqrt(rank), for files that leave it open."}),
        "alpha": (
            "FLOAT",
            {"default": 0.0, "min": 0.0, "max": 1e6, "tooltip": "Alpha of files without one; 0 for none."},
        ),
    }


def settled(inputs: Inputs) -> dict[str, Any]:
    """Return the keywords of the API for the facts that the user settled."""
    given = {
        "architecture": inputs.get("architecture") or None,
        "rslora": ANSWERS[inputs.get("rslora", FILE_TELLS)],
        "alpha": inputs.get("alpha") or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def shown(*outputs: Any, text: str) -> dict[str, Any]:
    """Return the outputs of a node, and the text that ComfyUI shows and keeps in its history."""
    return {"ui": {"text": (text,)}, "result": (*outputs, text)}


class _ReadsFiles:
    """A node that depends on files: ComfyUI runs it again once one of them changes."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    OUTPUT_NODE = True
    # The inputs that name files.
    FILES: ClassVar[tuple[str, ...]] = ("lora",)

    @classmethod
    def path(cls, name: str) -> Path:
        """Return the path of an input file; raise LoraInspectError for a name that leads to none."""
        return lora_path(name)

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        """Return the time and size of each file; a name in place of those of a file that cannot be found."""
        return " ".join(map(cls._state, filter(None, map(inputs.get, cls.FILES))))

    @classmethod
    def _state(cls, name: str) -> str:
        try:
            return state_of(cls.path(name))
        except (OSError, LoraInspectError):
            return name


class CheckLora(_ReadsFiles):
    """Reports the problems of a file."""

    DESCRIPTION = "Reports the problems of a LoRA file, such as damage and scales that programs misread."
    RETURN_TYPES = ("BOOLEAN", "STRING")
    RETURN_NAMES = ("ok", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs."""
        reads_all = {"default": False, "tooltip": "Read all numbers, and find NaN, infinity, spikes and dead modules."}
        return {"required": {"lora": lora_choice("The file to check."), "read_numbers": ("BOOLEAN", reads_all)}}

    @in_one_sentence
    def run(self, lora: str, read_numbers: bool) -> dict[str, Any]:
        """Check the header of the file and, if asked, its numbers; `ok` is true without warnings and errors."""
        found = lora_inspect.check(self.path(lora), tensors=read_numbers, progress=watching())
        lines = [f"{one.severity}: {one.message} [{one.code}]" for one in found.problems]
        clean = "no problems" if found.numbers_read else "no problem in the header; read_numbers reads the numbers"
        return shown(not found.fails("warning"), text="\n".join([lora, *(lines or [clean])]))


class InspectLora(_ReadsFiles):
    """Reports the meaning of a file, and the effect that it has in ComfyUI."""

    DESCRIPTION = "Tells what a LoRA file means, and at which strength ComfyUI applies it."
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("record", "report")
    OUTPUT_TOOLTIPS = ("All facts and their evidence, as JSON.", "The most important facts, as text.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs."""
        return {"required": {"lora": lora_choice("The file to inspect.")}}

    @in_one_sentence
    def run(self, lora: str) -> dict[str, Any]:
        """Read the header of the file, its alphas and its flags."""
        path = self.path(lora)
        adapter = lora_inspect.open_adapter(path)
        record = adapter.to_dict()
        lines = [lora, f"kind: {adapter.kind}"]
        if adapter.kind == "adapter":
            lines += [
                f"model: {' or '.join(adapter.architectures) or 'unknown'}",
                *(f"{name}: {_counts(record[name])}" for name in ("algorithms", "ranks", "alphas", "scales")),
                f"RS-LoRA: {_yes_or_no(adapter.rslora)}",
                f"DoRA: {_yes_or_no(adapter.dora)}",
                f"names: {adapter.scheme or 'unknown'}",
                *(
                    f"{one.program.title}: {one.verdict}{one.says and f'; {one.says}'}"
                    for one in lora_inspect.compat(path, program=PROGRAM).verdicts
                ),
            ]
        lines += [f"{one.severity}: {one.message} [{one.code}]" for one in adapter.problems]
        return shown(json.dumps(record), text="\n".join(lines))


class _WritesFile(_ReadsFiles):
    """A node that writes a file, and applies it at strength 1 to the models that are connected."""

    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "STRING")
    RETURN_NAMES = ("model", "clip", "name", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the written file applied.",
        "The text encoder with the written file applied.",
        "The name of the written file in its folder, as a LoRA loader takes it.",
        "The account of the work.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs: those of the node, of the output and of the models."""
        required, optional = cls.own_inputs()
        return {
            "required": {
                **required,
                "output_name": ("STRING", {"default": "", "tooltip": "The name of the new file, without a folder."}),
                "folder": (list(OUTPUT_FOLDERS), {"tooltip": "ComfyUI's folder for the new file."}),
                "overwrite": ("BOOLEAN", {"default": False, "tooltip": "Replace an existing file of this name."}),
            },
            "optional": {
                **optional,
                "model": ("MODEL", {"tooltip": "The model to apply the new file to."}),
                "clip": ("CLIP", {"tooltip": "The text encoder to apply the new file to."}),
            },
        }

    @classmethod
    def own_inputs(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the inputs of this node that are required, and the optional ones."""
        raise NotImplementedError

    def write(self, output: Path, force: bool, inputs: Inputs) -> Made:
        """Write the output and return the account; raise LoraInspectError, and write nothing, if it is refused."""
        raise NotImplementedError

    @classmethod
    def VALIDATE_INPUTS(cls, output_name: str | None = None) -> bool | str:
        """Return True, or the problem of the name, before the workflow starts; a linked name is not known then."""
        wrong = "" if output_name is None else wrong_output_name(output_name)
        return f"output_name: {wrong}" if wrong else True

    @in_one_sentence
    def run(
        self, output_name: str, folder: str, overwrite: bool, model: Any = None, clip: Any = None, **inputs: Any
    ) -> dict[str, Any]:
        """Write the file, then apply it to the models that are connected."""
        output = output_path(output_name, folder, overwrite)
        lines = account_of(self.write(output, overwrite, inputs))
        if model is not None or clip is not None:
            model, clip, count = applied(output, model, clip)
            lines.append(f"applied to {count} weights")
        return shown(model, clip, output.name, text="\n".join([output.name, *lines]))


class CombineLoras(_WritesFile):
    """Writes the exact sum of several files at their strengths as one file."""

    DESCRIPTION = "Adds LoRA files up, each at its strength, and saves the exact sum as one file."
    FILES = tuple(f"lora_{number}" for number in SLOTS)

    @classmethod
    def own_inputs(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first two files with strengths, and the others."""
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01, "tooltip": "The multiplier of the file."}
        slots: list[dict[str, Any]] = [
            {
                f"lora_{number}": lora_choice(f"File {number} of the sum.", is_optional=number > 1),
                f"strength_{number}": ("FLOAT", strength),
            }
            for number in SLOTS
        ]
        rank = {"default": 0, "min": 0, "max": 4096, "tooltip": "Largest rank of the sum; 0 for the exact sum."}
        return slots[0] | slots[1], slots[2] | slots[3] | slots[4] | slots[5] | {"max_rank": ("INT", rank)} | facts()

    def write(self, output: Path, force: bool, inputs: Inputs) -> Made:
        """Write the sum of the chosen files."""
        adapters = [
            (self.path(name), inputs.get(f"strength_{number}", 1.0))
            for number in SLOTS
            if (name := inputs.get(f"lora_{number}", NO_FILE)) != NO_FILE
        ]
        options = {"max_rank": inputs.get("max_rank") or None, "to": PROGRAM, **settled(inputs)}
        return lora_inspect.combine(adapters, output, force=force, progress=watching(), **options)


class ConvertLora(_WritesFile):
    """Writes a file that ComfyUI applies as it was trained."""

    DESCRIPTION = "Saves a copy of a LoRA file that ComfyUI applies at the strength it was trained at."

    @classmethod
    def own_inputs(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the file."""
        return {"lora": lora_choice("The file to convert.")}, facts()

    def write(self, output: Path, force: bool, inputs: Inputs) -> Made:
        """Convert the file; the copy is read again and compared with it."""
        options = settled(inputs)
        return lora_inspect.convert(
            self.path(inputs["lora"]), output, to=PROGRAM, force=force, progress=watching(), **options
        )


class ResizeLora(_WritesFile):
    """Writes a file with other ranks."""

    DESCRIPTION = "Saves a LoRA file with other ranks, and measures the error."

    @classmethod
    def own_inputs(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the file, and the rule for its ranks."""
        value = {"default": 16.0, "min": 0.0, "max": 1e6, "step": 0.01, "tooltip": "A rank, a share or megabytes."}
        return {
            "lora": lora_choice("The file to resize."),
            "rule": (list(RULES), {"tooltip": "The rule that decides the ranks."}),
            "value": ("FLOAT", value),
        }, facts()

    @classmethod
    def VALIDATE_INPUTS(
        cls, output_name: str | None = None, rule: str | None = None, value: float | None = None
    ) -> bool | str:
        """Return True, or the problem of the name, of the rule or of its value."""
        if wrong := wrong_value(rule, value):
            return f"value: {wrong}"
        return super().VALIDATE_INPUTS(output_name)

    def write(self, output: Path, force: bool, inputs: Inputs) -> Made:
        """Write the file with the ranks of the rule."""
        if wrong := wrong_value(inputs["rule"], inputs["value"]):
            raise RefusedError("value", wrong, "give another value")
        rule, value = RULES[inputs["rule"]], inputs["value"]
        given = (
            {"rank": int(value)} if rule == "rank" else {"size": f"{value:f}MB"} if rule == "size" else {rule: value}
        )
        options: Any = {**given, "to": PROGRAM, "force": force, "progress": watching(), **settled(inputs)}
        return lora_inspect.resize(self.path(inputs["lora"]), output, **options)


class ExtractLora(_WritesFile):
    """Writes the difference of two models as a LoRA file."""

    DESCRIPTION = "Saves the difference between a tuned model and its base as a LoRA file."
    FILES = ("tuned", "base")

    @classmethod
    def path(cls, name: str) -> Path:
        """Return the path of a model; raise LoraInspectError for a name that leads to none."""
        return model_path(name)

    @classmethod
    def own_inputs(cls) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the two models and the rank."""
        names = [f"{kind}/{name}" for kind in MODEL_KINDS for name in folder_paths.get_filename_list(kind)]
        return {
            "tuned": (names, {"tooltip": "The tuned model."}),
            "base": (names, {"tooltip": "The model that it was tuned from."}),
            "rank": ("INT", {"default": 32, "min": 1, "max": 4096, "tooltip": "The rank of the file."}),
        }, {}

    def write(self, output: Path, force: bool, inputs: Inputs) -> Made:
        """Write the difference of the models at the rank."""
        tuned, base = self.path(inputs["tuned"]), self.path(inputs["base"])
        return lora_inspect.extract(
            tuned, base, output, rank=inputs["rank"], to=PROGRAM, force=force, progress=watching()
        )


def wrong_value(rule: str | None, value: float | None) -> str:
    """Return the problem of a value for a rule; an empty string for none, and where one of them is not known yet."""
    if rule is None or value is None:
        return ""
    if rule not in RULES:
        return f"the rule is one of {', '.join(RULES)}"
    if rule == "rank":
        return "" if value >= 1 and float(value).is_integer() else "a rank is a whole number from 1 on"
    if rule == "megabytes":
        return "" if 0 < value < math.inf else "a size is above 0"
    return "" if 0 < value <= 1 else "a share is above 0 and at most 1"


def applied(path: Path, model: Any, clip: Any) -> tuple[Any, Any, int]:
    """Return copies of the models with the file applied as ComfyUI's own loader does, and the number of weights.

    Raises RefusedError if the file changes no weight of either.
    """
    before = _patches(model, clip)
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    count = _patches(model, clip) - before
    if not count:
        raise RefusedError(
            str(path), "it changes no weight of the connected models", "connect the model that the LoRA is for"
        )
    return model, clip, count


def account_of(made: Made) -> list[str]:
    """Return the lines of a report: modules, ranks, errors, and everything that was left out."""
    if isinstance(made, ConvertResult):
        errors = [error for error in made.relative_errors.values() if error is not None]
        loss = "exact" if made.exact else f"largest relative error {max(errors, default=0.0):.3g}"
        left_out = [f"left out: {key}" for key in made.dropped]
        no_longer_right = [f"no longer right in: {title}" for title in made.titles_no_longer_right]
        return [f"{made.modules} modules, {loss}", *left_out, *no_longer_right, *made.notes, *made.remarks]
    lines = [f"{made.modules} modules, ranks {_counts(made.ranks) or 'none'}"]
    if made.error:
        lines.append(f"relative error {made.error:.3g}")
    return [*lines, *(f"left out: {name}: {reason}" for name, reason in made.left_out.items()), *made.notes]


def _patches(model: Any, clip: Any) -> int:
    patchers = [*([] if model is None else [model]), *([] if clip is None else [clip.patcher])]
    return sum(len(patches) for patcher in patchers for patches in patcher.patches.values())


def _counts(modules: Mapping[Any, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in modules.items())


def _yes_or_no(answer: bool | None) -> str:
    return "unknown" if answer is None else "yes" if answer else "no"
