"""The modules of an opened adapter, and the changes that each makes to its layer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from lora_inspect.api.arguments import in_a_sentence
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.near_names import suggestion
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.scale.scale_records import FoldedScales
from lora_inspect.reporting.file_record import module_record
from lora_inspect.sentences import scale_in_words, shortened

if TYPE_CHECKING:
    import torch

_SHOWN = 3


class ModuleChange:
    """One change that a module makes to its layer; nearly all modules make one.

    A module makes several if a file has, for example, LoRA and a difference of the bias for one layer, or slices of a
    fused layer.
    """

    def __init__(self, contribution: Contribution, record: Mapping[str, Any]) -> None:
        self._contribution = contribution
        self._record = record

    @property
    def algorithm(self) -> str:
        """The algorithm's name in docs/algorithms.md: "lora", "loha", ..."""
        return self._contribution.algorithm.name

    @property
    def parameter(self) -> str:
        """The parameter of the layer that it changes: "weight" or "bias"."""
        return self._contribution.algorithm.parameter

    @property
    def rank(self) -> int | None:
        """The rank that divides alpha; None for an algorithm without one."""
        return self._contribution.rank

    @property
    def alpha(self) -> float | None:
        """The alpha that the file stores or states; None if it has none."""
        return self._contribution.alpha

    @property
    def scale(self) -> float | None:
        """The scale: alpha/rank, alpha/sqrt(rank), or another that the file means; None if it is unknown.

        If the factors already contain the scale, as `why` then says, this is the number that was multiplied into them.
        """
        scale: float | None = self._record["scale"]
        return scale

    @property
    def why(self) -> str:
        """The reason for the scale, or for its absence."""
        why: str = self._record["why"]
        return why

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """The shape (out, in, *kernel) of the changed parameter, or of its changed `rows`.

        A size is None if the factors do not show it. The whole is None for an algorithm that lora-inspect recognises
        and cannot compute.
        """
        shape = self._record["shape"]
        return None if shape is None else tuple(shape)

    @property
    def rows(self) -> tuple[int, int] | None:
        """The changed rows of the layer's weight; None for all rows."""
        return self._contribution.rows

    @property
    def dora(self) -> str | None:
        """The axis of its DoRA magnitude, "output" or "input"; None without one."""
        axis: str | None = self._record["dora"]
        return axis

    def to_dict(self) -> dict[str, Any]:
        """Return the item of `module_list` that `info --json --modules` prints."""
        return dict(self._record)

    def __repr__(self) -> str:
        scale = scale_in_words(self.scale)
        return f"<ModuleChange {self.algorithm} of the {self.parameter}, rank {self.rank}, scale {scale}>"


class OpenedModule:
    """One layer that an adapter changes.

    `changes` lists its changes. The properties `algorithm` to `dora` describe the first change; nearly all modules have
    only one.
    """

    def __init__(self, adapter: Adapter, module: Module, folded: FoldedScales) -> None:
        self._adapter = adapter
        self._module = module
        self.changes = tuple(ModuleChange(one, module_record(module, one, folded)) for one in module.contributions)

    @property
    def key(self) -> str:
        """The module's name in the file: the beginning of its keys."""
        return self._module.name.key

    @property
    def path(self) -> str | None:
        """The dotted path of the layer, without the component; None if underscores leave it open."""
        return self._module.path

    @property
    def component(self) -> str:
        """The network of the model: "model", "text_encoder", ..."""
        return self._module.name.component

    @property
    def algorithm(self) -> str:
        """See `ModuleChange.algorithm`."""
        return self.changes[0].algorithm

    @property
    def rank(self) -> int | None:
        """See `ModuleChange.rank`."""
        return self.changes[0].rank

    @property
    def alpha(self) -> float | None:
        """See `ModuleChange.alpha`."""
        return self.changes[0].alpha

    @property
    def scale(self) -> float | None:
        """See `ModuleChange.scale`."""
        return self.changes[0].scale

    @property
    def why(self) -> str:
        """See `ModuleChange.why`."""
        return self.changes[0].why

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """See `ModuleChange.shape`."""
        return self.changes[0].shape

    @property
    def dora(self) -> str | None:
        """See `ModuleChange.dora`."""
        return self.changes[0].dora

    def delta(
        self,
        base_weight: "torch.Tensor | None" = None,
        *,
        parameter: str | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> "torch.Tensor":
        """Return the tensor that `merge` adds to the layer's weight at multiplier 1, scale included.

        It has the shape of that weight.

        `base_weight` is the weight as the base stores it. DoRA, OFT and other algorithms that depend on it need it; the
        others take its shape. A square weight is read as (out, in) unless the config says otherwise: give a projection
        that open_clip stores as a parameter as its transpose. Without a weight the factors decide the shape, so a LoHa
        or LoKr of a convolution may have one dimension for inputs and kernel. `parameter` is "weight" or "bias"; the
        default is that of the first change. The result is on the device of `base_weight`, else on the CPU; it is
        float32 unless you give a `dtype`.

        Raises LoraInspectError if the file is damaged or its meaning is open, if the weight is missing or does not
        match, and for experts. Raises ValueError for a parameter that the module does not change, and TypeError for a
        weight that is no tensor of numbers.
        """
        self._adapter.refuse()
        own = self._changes_of(parameter or self.changes[0].parameter)
        load_torch()
        import torch

        from lora_inspect.merging.single_weight import lone_change

        if base_weight is not None and not _has_numbers(base_weight):
            raise TypeError("base_weight must be the weight of the layer, a dense tensor of floating-point numbers")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a torch.dtype of floating-point numbers, not {dtype!r}")
        with in_a_sentence():
            change = lone_change(self._adapter, own, base_weight)
        return change.to("cpu" if base_weight is None else base_weight.device, dtype or torch.float32)

    def _changes_of(self, parameter: str) -> list[Contribution]:
        changes = self._module.changes
        own = [one for one in changes if one.algorithm.parameter == parameter]
        if not own:
            known = sorted({one.algorithm.parameter for one in changes})
            raise ValueError(f"{self.key} changes no {parameter}; it changes its {' and '.join(known)}")
        return own

    def __repr__(self) -> str:
        more = f" and {len(self.changes) - 1} more" if len(self.changes) > 1 else ""
        name, scale = shortened(self.path or self.key), scale_in_words(self.scale)
        return f"<OpenedModule {name!r}: {self.algorithm}{more}, rank {self.rank}, scale {scale}>"


def _has_numbers(weight: object) -> bool:
    """Return True for a tensor with a number for each of its entries."""
    import torch

    if not isinstance(weight, torch.Tensor) or weight.is_meta or weight.layout != torch.strided:
        return False
    return weight.is_floating_point()


class Modules(Sequence[OpenedModule]):
    """The modules in the order of the file, by number (`modules[0]`), path or name (`modules["blocks.0.q"]`)."""

    def __init__(self, adapter: Adapter) -> None:
        folded = FoldedScales(adapter.checkpoint.metadata)
        self._modules = tuple(OpenedModule(adapter, module, folded) for module in adapter.modules.values())
        self._named: dict[str, list[OpenedModule]] = {}
        for module in self._modules:
            for name in {module.key, module.path or module.key}:
                self._named.setdefault(name, []).append(module)

    @overload
    def __getitem__(self, which: int | str) -> OpenedModule: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[OpenedModule]: ...
    def __getitem__(self, which: int | str | slice) -> OpenedModule | Sequence[OpenedModule]:
        """Return the module at a number, or with a path or a key.

        Raises KeyError, with the nearest name, if no module has it, or modules of several components have.
        """
        if not isinstance(which, str):
            return self._modules[which]
        found = self._named.get(which, [])
        if len(found) > 1:
            keys = ", ".join(module.key for module in found[:_SHOWN])
            raise KeyError(f"{which} is the path of several modules; choose one of {keys}")
        if not found:
            example = f"; the first of {len(self)} is {self._modules[0].path or self._modules[0].key}" if self else ""
            raise KeyError(f"no module is called {which}{suggestion(which, self._named) or example}")
        return found[0]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[OpenedModule]:
        return iter(self._modules)

    def __contains__(self, which: object) -> bool:
        """Return True if a path, a key or a module is one of them."""
        return which in self._named if isinstance(which, str) else which in self._modules

    def __repr__(self) -> str:
        return f"<Modules: {len(self)}>"
