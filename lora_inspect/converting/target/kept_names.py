"""The names of an input in an output for a program: they stay if the program reads the output under them.

The output is predicted, and the rules of the program judge the prediction. Names that keep their scale in a config or a
header, as those of PEFT, mlx-lm and llama.cpp, are not predicted: they stay if they are the program's own.
"""

from collections.abc import Sequence
from dataclasses import replace

from lora_inspect import programs, schemes
from lora_inspect.architectures.detection import Detection
from lora_inspect.converting.options import FULL, ConvertOptions
from lora_inspect.converting.target.prediction import predict_output
from lora_inspect.converting.target.target_algorithm import check_algorithm
from lora_inspect.converting.target.target_layout import Destination, destinations
from lora_inspect.converting.target.target_program import for_loader, norms_in, with_magnitudes
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.adapter_view import View
from lora_inspect.programs.record import Program
from lora_inspect.programs.verdict import SAME, judge_view
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths
from lora_inspect.reading.keys.groups import changes_of_kinds


class Prediction(NamedTuple):
    """The output of a conversion as programs see it, None if unknown, and its families."""

    written: View | None
    families: Sequence[Detection]

    def is_right_in(self, program: Program) -> bool:
        """Return True if the program applies the meaning of the output; an unknown output counts as False."""
        return self.written is not None and judge_view(self.written, self.families, program).verdict == SAME


def predict(adapter: Adapter, modules: Sequence[Destination], options: ConvertOptions) -> Prediction:
    """Return the prediction of the conversion of `adapter` into `modules`.

    Raises LoraInspectError if rows have to be moved that cannot be.
    """
    written = predict_output(adapter, modules, options)
    if written is None:
        return Prediction(None, ())
    # Under other names it may be of more families, which widths tell apart where factors tell those.
    changes = (one for one in changes_of_kinds(adapter.modules) if one.algorithm.formula)
    has_widths = all(None not in one.shape for one in changes)
    return Prediction(View(written), adapter_candidates(written if has_widths else adapter))


class NameKeeper:
    """The decision on the names of one adapter's outputs, with the predictions that programs share.

    A prediction takes as much memory as the adapter, so only the last one stays of each kind of output: of one rank and
    one scale for all modules or of any, and by the norms of its magnitudes.
    """

    def __init__(self) -> None:
        self._predictions: dict[tuple[bool, str | None], tuple[ConvertOptions, Prediction]] = {}

    def keep(self, adapter: Adapter, whole: Adapter, options: ConvertOptions) -> ConvertOptions | None:
        """Return the options of an output with the names of the `adapter`, a part of the `whole` file.

        It is None if no program is asked for, or if the program does not apply the meaning of such an output.
        """
        if options.program is None:
            return None
        families, program = adapter_candidates(whole), programs.by_name(options.program)
        try:
            kept = with_magnitudes(adapter, _options_of_kept(adapter, program, families, options))
            check_algorithm(adapter, kept)
            is_right = self.predict(adapter, whole, kept).is_right_in(program)
        except LoraInspectError:
            return None
        return kept if is_right else None

    def predict(self, adapter: Adapter, whole: Adapter, options: ConvertOptions) -> Prediction:
        """Return the prediction of an output with the names of the `adapter`, a part of the `whole` file."""
        # The program has settled its part of the options.
        key = replace(options, program=None)
        kind = options.uniform, options.norms
        known = self._predictions.get(kind)
        if known is None or known[0] != key:
            self._predictions.pop(kind, None)  # frees its memory before the next one takes as much
            named = with_paths(adapter, adapter_candidates(whole))
            known = self._predictions[kind] = key, predict(named, destinations(named, None), key)
        return known[1]


def _options_of_kept(
    adapter: Adapter, program: Program, families: Sequence[Detection], options: ConvertOptions
) -> ConvertOptions:
    """Return the options for an output with the adapter's names, with its magnitudes unless they exclude these."""
    options = for_loader(options, program, families)
    if not adapter.dora.value or options.algorithm == FULL:
        return options
    is_limited = options.rank is not None or options.max_error is not None
    keeps = options.keep_dora or not (options.drop_magnitude or is_limited)
    # Only a base gives magnitudes other norms.
    scheme = schemes.SCHEMES.get(adapter.scheme or "") if options.base else None
    return replace(options, keep_dora=keeps, norms=norms_in(program, families, scheme) if scheme else None)
