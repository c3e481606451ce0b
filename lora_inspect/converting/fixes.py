"""The command that fixes a file for a program, found by planning conversions.

`find_fixes` tries every way for every program, which takes longer than a look at a file may take. `loading_fix` plans
only the fast ways, for one program.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from lora_inspect import schemes
from lora_inspect.converting.options import ConvertOptions, ConvertRequest
from lora_inspect.converting.plan import SettledInput, plan_settled, settle
from lora_inspect.converting.standard_fix import output_beside
from lora_inspect.converting.target.kept_names import NameKeeper, Prediction, predict
from lora_inspect.converting.target.target_algorithm import becomes_lora, check_algorithm, is_kernel_open, is_thin
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.converting.target.target_names import targets
from lora_inspect.converting.target.target_program import check_loadable, scheme_for, with_base
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.locations import is_folder
from lora_inspect.option import declared
from lora_inspect.programs.record import Program
from lora_inspect.programs.verdict import Verdict
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import changes_of_kinds
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.schemes.gguf import GGUF
from lora_inspect.shell import command_line, operand

# What stands in a command for the base, and for the config of the model, which only the user knows.
BASE, CONFIG = "BASE", "CONFIG"
# The options that a way to a fix may have, in the order of the command.
_SPELLED = (
    *("to", "base", "keep_dora", "model_config", "algorithm", "max_error", "allow_unclaimed", "allow_partial_dora"),
)
# How near a LoRA is to come of what has no exact place in the program's files.
_NEAR = 0.01


class _Outlook:
    """The predicted outputs of an adapter's conversions, which programs that read the same names share.

    Of outputs with other names only the last prediction stays: one takes about as long as a conversion, and as much
    memory as the adapter.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._names = NameKeeper()
        self._options: ConvertOptions | None = None
        self._prediction: Prediction | LoraInspectError | None = None

    def settle(self, options: ConvertOptions) -> SettledInput:
        """Return the settled input; raise LoraInspectError if the conversion is refused."""
        return settle(self._adapter, options, self._names)

    def predict(self, settled: SettledInput, output: str) -> Prediction:
        """Return the prediction of a settled conversion.

        Raises LoraInspectError if the conversion is refused.
        """
        # What the program decides is settled.
        options = replace(settled.options, program=None)
        if self._prediction is None or options != self._options:
            self._options, self._prediction = options, None  # frees its memory before another one takes as much
            self._prediction = self._planned(settled, output)
        if isinstance(self._prediction, LoraInspectError):
            raise self._prediction
        return self._prediction

    def _planned(self, settled: SettledInput, output: str) -> Prediction | LoraInspectError:
        try:
            return self.predict_modules(settled, plan_settled(settled, output).destinations)
        except LoraInspectError as error:
            return error

    def predict_modules(self, settled: SettledInput, modules: Sequence[Destination]) -> Prediction:
        """Return the prediction of an output with these modules; raise LoraInspectError if its rows cannot be moved."""
        if settled.options.scheme is None:
            return self._names.predict(settled.part.adapter, settled.whole, settled.options)
        return predict(settled.part.adapter, modules, settled.options)


def find_fixes(
    adapter: Adapter,
    given: str,
    programs: Iterable[Program],
    base: str | None,
    ways: "Sequence[Way] | None" = None,
) -> dict[str, str]:
    """Return the command that converts the adapter for each program that has one, by the programs' names.

    `given` is the path as the user wrote it. The first of the `ways` that works counts, from all ways by default. If a
    base is needed and none was given, the command has BASE in its place. CONFIG is in the place of a model's config,
    which llama.cpp's names depend on.
    """
    # Programs that read the same names follow each other, so that they share a prediction.
    by_names = sorted(((_names_for(adapter, one), one) for one in programs), key=lambda found: found[0] or "")
    left = [(program, _asked(adapter, program, names, base)) for names, program in by_names]
    found: dict[str, str] = {}
    outlook = _Outlook(adapter)
    for drops in (False, True) if adapter.unclaimed else (False,):
        for make in EVERY_WAY if ways is None else ways:
            for program, asked in left:
                try:
                    options = make(adapter, replace(asked, allow_unclaimed=drops), base)
                    if options is None:
                        continue
                    settled = outlook.settle(options)
                    output = output_beside(adapter, options.program or "standard", settled.options.scheme)
                    if not _is_right(settled, output, options, program, outlook):
                        continue
                except LoraInspectError:
                    continue
                words = ["lora-inspect", "convert", given, *_words(options), "-o", operand(output)]
                found[program.name] = command_line(words)
            left = [one for one in left if one[0].name not in found]
    return found


def find_fix(
    adapter: Adapter, given: str, program: Program, base: str | None, ways: "Sequence[Way] | None" = None
) -> str | None:
    """Return the command of `find_fixes` for one program, or None."""
    return find_fixes(adapter, given, [program], base, ways).get(program.name)


def _asked(adapter: Adapter, program: Program, names: str | None, base: str | None) -> ConvertOptions:
    """Return what every way to a fix for the program, which reads these `names`, has in common."""
    asked = ConvertOptions(program=program.name, settings=adapter.settings)
    if adapter.scheme != GGUF.name == names:
        return replace(asked, model_config=base if base and is_folder(base) else CONFIG)
    return asked


def _names_for(adapter: Adapter, program: Program) -> str | None:
    """Return the scheme of the adapter's conversion for the program, or None if it has no certain one."""
    try:
        return scheme_for(adapter, ConvertOptions(program=program.name, settings=adapter.settings))
    except LoraInspectError:
        return None


def _standard(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    """Return options that keep the names and write alpha/rank, or None with DoRA."""
    return None if adapter.dora.value else replace(asked, program=None, model_config=None)


def _exact(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return asked


def _with_base(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return with_base(adapter, base or BASE, asked) if adapter.dora.value else None


def _as_lora(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    made = [c for c in changes_of_kinds(adapter.modules) if becomes_lora(c.algorithm, c.shapes)]
    if not made or any(is_kernel_open(c.algorithm, c.shapes) for c in made):
        return None
    return replace(
        asked, algorithm="lora", max_error=None if all(is_thin(c.algorithm, c.shapes) for c in made) else _NEAR
    )


def _near(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return replace(asked, algorithm="lora", base=base or BASE, max_error=_NEAR)


def _as_full(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return replace(asked, algorithm="full", base=base or BASE)


# How options come about: from the adapter, what is asked in any case, and the base. None where it is no way for it.
Way = Callable[[Adapter, ConvertOptions, "str | None"], "ConvertOptions | None"]
EVERY_WAY: tuple[Way, ...] = (_standard, _exact, _with_base, _as_lora, _near, _as_full)
# Those that change names, scale and what a base tells of magnitudes, and leave the factors what they are.
OF_ITS_FACTORS: tuple[Way, ...] = (_exact, _with_base)


def _is_right(settled: SettledInput, output: str, options: ConvertOptions, program: Program, outlook: _Outlook) -> bool:
    """Return True if the program will apply the meaning of the output.

    This is only as sure as the prediction. Raises LoraInspectError if the conversion is impossible. Facts in files that
    were not given are assumed to be known.
    """
    if options.base != BASE and options.model_config != CONFIG:
        return _is_read(outlook.predict(settled, output), options, program)
    adapter, settled_options = settled.part.adapter, settled.options
    if check_algorithm(adapter, settled_options):
        raise RefusedError(adapter.checkpoint.path, "no module would change")
    if options.model_config != CONFIG:
        modules = targets(adapter, settled.whole, None, None, settled_options)
        return _is_read(outlook.predict_modules(settled, modules), options, program)
    if not all(one.algorithm.rows or one.algorithm.replaces for one in adapter.contributions):
        raise RefusedError(adapter.checkpoint.path, "the config decides whether rows move, and some rows cannot")
    check_loadable(adapter, schemes.by_name(settled_options.scheme or ""), settled_options)
    return True


def _is_read(prediction: Prediction, options: ConvertOptions, program: Program) -> bool:
    if prediction.written is None:
        # A folder is as its config says, but only programs that read such folders are given one.
        return options.program is not None
    return prediction.is_right_in(program)


def _words(options: ConvertOptions) -> Iterator[str]:
    spelled = declared(ConvertRequest)
    asked = replace(options, to=options.program, allow_partial_dora=options.settings.allow_partial_dora)
    for name in _SPELLED:
        yield from spelled[name].words(getattr(asked, name))


class LoadingFix(NamedTuple):
    """A command line, and the title of its program."""

    title: str
    command: str


def loading_fix(adapter: Adapter, verdict: Verdict) -> LoadingFix | None:
    """Return the command for the program of a `verdict`, or None.

    It is None if neither other names nor a base fix the file for it.
    """
    given = spell_argument(operand(adapter.checkpoint.path), adapter.settings)
    command = find_fix(adapter, given, verdict.program, None, OF_ITS_FACTORS)
    return LoadingFix(verdict.program.title, command) if command else None
