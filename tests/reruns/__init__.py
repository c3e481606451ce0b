"""Programs whose measured cases `rerun_programs.py` reruns, one file each, and the cases that they have in common.

A file of this folder has `version`, the checkout's name for itself, and `cases`. It imports the program inside its
functions, so that its tables can be read without it.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from adapter_files import ALL_KINDS, Arranged, adapter_file, arranged, layout_of
from adapters import NAMES, Weight
from diffusers_pipelines import weights
from program_grid import Observed, observe
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import SAME, Verdict

Weights = Mapping[str, Tensor]
# LoRA, in both of its spellings, is tried in every name. Configs are of diffusers alone, and norms have no
# layer of the grid.
LORA = "lora"
KINDS = tuple(name for name, kind in ALL_KINDS.items() if kind.config is None and not kind.of_norms)


class Asked(NamedTuple):
    """The families and the kinds that are run, all where none is named."""

    families: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    def takes(self, family: str, kind: str) -> bool:
        """Whether a case is one of them."""
        return (not self.families or family in self.families) and (not self.kinds or kind in self.kinds)


class Case(NamedTuple):
    """A file of a kind in some names, and the verdict that the program is seen to earn.

    `seen` gets the verdict of the record, where it cannot tell outcomes apart.
    """

    family: str
    names: str
    kind: str
    file: Path
    seen: Callable[[Verdict], Observed]


class Loading(NamedTuple):
    """How a program loads files into models of some families, which have by name the layout of their weights.

    `load` takes a family, the weights and biases of the model by name and a file, and returns those of the model with
    it. It has no effect on those that it is given.
    """

    families: Mapping[str, str]
    load: Callable[[str, dict[str, Tensor], Path], Weights]


def grid(loading: Loading, record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The cases of every family, or of those that are asked for.

    LoRA is tried in all names, and every kind in the first names of each layout that load.
    """
    for family, layout in loading.families.items():
        if asked.families and family not in asked.families:
            continue
        model = _Model(loading, family, layout)
        tried = set()
        for names in NAMES:
            of_names = layout_of(family, names)
            if of_names is None:
                continue
            # PEFT's names without an alpha need a config.
            first = [model.case(names, LORA, alpha, folder) for alpha in (True, False)[: 2 - names.startswith("peft")]]
            (verdict,) = compat(str(first[0].file), record).verdicts
            if asked.takes(family, LORA):
                yield from first
            if verdict.verdict != SAME or of_names in tried:
                continue
            tried.add(of_names)
            for kind in KINDS:
                for alpha in (True, False) if ALL_KINDS[kind].has_alpha and kind != "rslora flag" else (True,):
                    if kind != LORA and asked.takes(family, kind):
                        yield model.case(names, kind, alpha, folder)


class _Model:
    """The weights of a family in a program's layout, and files of them."""

    def __init__(self, loading: Loading, family: str, layout: str) -> None:
        own = arranged(family, layout, weights(family))
        self._base = {path: weight for path, weight in weights(family).items() if path in _whole(own)}
        self._loading, self._family = loading, family
        self._own = arranged(family, layout, self._base)
        self._of_names: dict[str, frozenset[str]] = {}

    def case(self, names: str, kind: str, has_alpha: bool, folder: Path) -> Case:
        """A file of all layers; those of a fused layer that is not whole are left out of the comparison."""
        file = folder / f"{names}-{kind}-{has_alpha}.safetensors".replace("/", "")
        says = (*by_name(self._family).metadata_names, "")[0]
        made = adapter_file(self._family, names, kind, has_alpha, self._base, says=says)
        save_file({key: tensor.contiguous() for key, tensor in made.tensors.items()}, file, made.metadata)
        if names not in self._of_names:
            layout = layout_of(self._family, names) or "diffusers"
            self._of_names[names] = _whole(arranged(self._family, layout, self._base))
        meant = {}
        for path in self._of_names[names] & made.meant.keys():
            if not torch.equal(made.meant[path], self._base[path].double()):
                meant[path] = Weight(self._base[path].double(), made.meant[path], made.plain.get(path))
        for path, change in made.biases.items():
            if change.any():
                meant[f"{path}.bias"] = Weight(torch.zeros_like(change), change)
        said = kind if has_alpha else f"{kind}, no alpha"
        return Case(self._family, names, said, file, lambda verdict: observe(meant, partial(self._loaded, file)))

    def _loaded(self, file: Path) -> Weights:
        state = {f"{path}.weight": weight.clone() for path, weight in self._own.weights.items()}
        state |= {f"{path}.bias": torch.zeros(len(weight)) for path, weight in self._own.weights.items()}
        return _of_diffusers(self._own, self._base, self._loading.load(self._family, state, file))


def _whole(own: Arranged) -> frozenset[str]:
    """The layers of diffusers all of whose rows are in the layers of another layout."""
    rows, found = Counter[str](), {}
    for layer in own.weights:
        for home, runs in own.homes[layer]:
            rows[home] += sum(end - start for start, end, _ in runs)
    for homes in own.homes.values():
        for home, runs in homes:
            found[home] = found.get(home, 0) + sum(end - start for start, end, _ in runs)
    return frozenset(home for home, number in found.items() if rows[home] == number)


def _of_diffusers(own: Arranged, base: Weights, state: Weights) -> dict[str, Tensor]:
    """The weights of a layout, and the biases as "path.bias", as diffusers has them."""
    found = {path: torch.zeros_like(weight) for path, weight in base.items()}
    found |= {f"{path}.bias": torch.zeros(len(weight)) for path, weight in base.items()}
    for layer in own.weights:
        for home, rows, of_layer in own.rows(layer):
            found[home][rows] = state[f"{layer}.weight"].float().reshape(own.weights[layer].shape)[of_layer]
            found[f"{home}.bias"][rows] = state[f"{layer}.bias"].float()[of_layer]
    return found


def effective_weights(model: nn.Module, left_out: Collection[str] = ()) -> Weights:
    """Return the weights and biases that the layers act with, from their outputs for the basis and for zeros.

    Layers with one of `left_out` in their paths are left out.
    """
    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and not any(part in path for part in left_out):
            inputs = layer.weight[0].numel()
            basis = torch.eye(inputs).reshape(inputs, *layer.weight.shape[1:])
            with torch.no_grad():
                bias = layer(torch.zeros_like(basis[:1])).flatten()
                rows = layer(basis).reshape(inputs, -1) - bias
            found |= {f"{path}.weight": rows.T.reshape(layer.weight.shape), f"{path}.bias": bias}
    return found


def stub(*roots: str) -> None:
    """Puts something in the place of packages that are not installed here, and that no loading of an adapter needs."""
    absent = frozenset(root for root in roots if root not in sys.modules and find_spec(root) is None)
    sys.meta_path.append(_Stubs(absent))


class _Stubs(MetaPathFinder, Loader):
    """Finds modules of packages that are absent: they have every name, of a class that takes every argument."""

    def __init__(self, roots: frozenset[str]) -> None:
        self._roots = roots

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self._roots else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = self._named  # type: ignore[method-assign]

    @staticmethod
    def _named(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Stub,), {})


class _Stub:
    """What takes every argument, and has every method, which does nothing."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


def module_tree(
    state: Weights, classes: Mapping[str, str] | None = None, root: torch.nn.Module | None = None
) -> torch.nn.Module:
    """A model with layers of these weights and biases, below `root` where there is one.

    `classes` name the class of the modules whose paths are a pattern, with `{i}` for numbers.
    """
    root = torch.nn.Module() if root is None else root
    for name, weight in state.items():
        path, _, parameter = name.rpartition(".")
        if parameter != "weight":
            continue
        parent, walked = root, []
        *parents, leaf = path.split(".")
        for part in parents:
            walked.append(part)
            if part not in parent._modules:
                of = _class_of(".".join(walked), classes or {})
                parent.add_module(part, type(of, (torch.nn.Module,), {})())
            parent = parent._modules[part]
        parent.add_module(leaf, _layer(weight, state.get(f"{path}.bias")))
    return root


def _class_of(path: str, classes: Mapping[str, str]) -> str:
    for pattern, name in classes.items():
        if re.fullmatch(pattern.replace(".", r"\.").replace("{i}", "[0-9]+"), path):
            return name
    return "Module"


def _layer(weight: Tensor, bias: Tensor | None) -> torch.nn.Module:
    rows, inputs, *kernel = weight.shape
    if kernel:
        kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
        layer: torch.nn.Module = kinds[len(kernel) - 1](inputs, rows, tuple(kernel), bias=bias is not None)
    else:
        layer = torch.nn.Linear(inputs, rows, bias=bias is not None)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    return layer
