"""Whether the tests notice a changed formula: mutations of the mathematics, the places and the scale, one at a time.

    python benchmarks/mutations.py [--count 200] [--seed 0] [--workers 1] [--only TEXT] [--folder FOLDER] [--again]

Each mutation is one change of one file, drawn with a fixed seed, and loaded in the place of the file in processes of
its own. First all tests run once on the files as they are, and for each the functions are noted that it calls; a
mutation is judged by the tests that call its function, one file of tests after another, the quickest first. It is
killed where a test fails that passes by itself, or where the tests take ten times their time of the processor.

What is found is kept in FOLDER, so that a run that was cut goes on, and --again judges those anew that survived there.
--only draws from the mutations with a text in their line, as `maths/dora.py`. Prints a line a mutation that survives
and the share that was killed; exits with 1 where that is below 95%.
"""

import argparse
import gc
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from hashlib import md5
from pathlib import Path
from typing import Any

from mutants import Mutation, drawn, mutations_of, recording, source_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lora_inspect"
SOURCES = (
    "maths/*.py",
    "algebra/*.py",
    "algebra/linear/*.py",
    "algebra/measures/*.py",
    "algebra/methods/**/*.py",
    "algorithms/*.py",
    "algorithms/on_demand/*.py",
    *(f"matching/{name}.py" for name in ("placement", "match", "module_map")),
    *(f"architectures/{name}.py" for name in ("rows", "correspondence")),
    *(f"merging/{name}.py" for name in ("fold", "fold_chain", "plan")),
    *(f"reading/{name}.py" for name in ("scale/scales", "scale/scale_rules", "base/base_codecs", "base/quantisation")),
    *(f"converting/steps/{name}.py" for name in ("carried_scale", "part", "split_fuse", "respell", "low_rank_lora")),
    *(f"converting/steps/{name}.py" for name in ("renormalise", "full_delta")),
    *(f"converting/{name}.py" for name in ("target/target_layout", "output/proof")),
    *(f"programs/{name}.py" for name in ("adapter_view", "evaluate", "verdict")),
    *(f"verifying/{name}.py" for name in ("causes", "measure", "shares")),
)
# What does not compute a change: how torch is loaded.
LEFT_OUT = ("torch_threads.py",)
TESTS = tuple(
    f"tests/{name}"
    for name in (
        *("algebra", "algorithms", "maths", "merging", "matching", "converting", "reading", "architectures"),
        *("schemes", "ops"),
        *("programs/test_reception.py", "programs/test_lycoris.py"),
        *("cli/test_info.py", "cli/test_merge_options.py", "cli/test_bad_input.py"),
        *("networks/test_delta_modules.py", "networks/test_loha.py", "networks/test_lokr.py", "networks/test_oft.py"),
        *("networks/test_layers.py", "networks/test_numerics.py", "networks/test_base_dtypes.py"),
    )
)
# They load whole pipelines, or start other processes.
SLOW = ("test_standard_in_diffusers.py", "test_torch_threads.py")
# Of the processor's time, so that other programs make no difference: so many times the tests', and what loading takes.
TIMES, LOADING_SECONDS = 10, 60
MOST_BYTES = 12 << 30
SHARE = 0.95
ENDLESS = -int(signal.SIGPROF)
PASSED, FAILED, UNREADABLE, NONE_FOUND, STOPPED = 0, 1, 2, 5, 99


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads modules from other sources, with `names` known to them."""

    def __init__(self, sources: dict[Path, str], **names: object) -> None:
        self._files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sources}
        self._files = {name.removesuffix(".__init__"): file for name, file in self._files.items()}
        self._sources, self._names = sources, names

    def find_spec(self, name, path=None, target=None):
        if name not in self._files:
            return None
        file = self._files[name]
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, file, loader=self, submodule_search_locations=folders)

    def exec_module(self, module):
        file = self._files[module.__name__]
        module.__dict__.update(self._names)
        exec(compile(self._sources[file], str(file), "exec"), module.__dict__)


class Observer:
    """A plugin of pytest that runs the tests that are asked for, quickest first, and notes what it sees of them."""

    def __init__(self, wanted: dict[str, float] | None) -> None:
        self.wanted, self.seen = wanted, set[tuple[str, int]]()
        self.tests: dict[str, dict[str, Any]] = {}
        self.failures: list[tuple[str, str]] = []
        self.imported: list[tuple[str, int]] = []

    def pytest_collection(self) -> None:
        from hypothesis import settings

        settings.register_profile("mutations", settings(), database=None, derandomize=True)
        settings.load_profile("mutations")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self.imported = sorted(self.seen)
        if self.wanted is not None:
            items[:] = sorted((item for item in items if item.nodeid in self.wanted), key=self._seconds)

    def _seconds(self, item: Any) -> float:
        return self.wanted[item.nodeid]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.seen.clear()
        self._began = time.process_time()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.tests[nodeid] = {"seconds": time.process_time() - self._began, "seen": sorted(self.seen)}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failures.append((report.nodeid, str(crash.message if crash else report.longrepr).split("\n")[0][:200]))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failures.append((report.nodeid, str(report.longrepr).strip().split("\n")[-1][:200]))


def run(test_file: str, replaced: dict[Path, str], wanted: dict[str, float] | None, seconds: float) -> dict[str, Any]:
    """What running the tests of a file came to, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if not child:
            try:
                _observe(test_file, replaced, wanted, seconds, Path(folder))
            except BaseException:
                keep(Path(folder) / "found.json", {"failures": [], "error": traceback.format_exc()})
            os._exit(STOPPED)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = Path(folder) / "found.json"
        return {"status": status, **(json.loads(found.read_text()) if found.exists() else {"failures": []})}


def _observe(test_file: str, replaced: dict[Path, str], wanted: Any, seconds: float, folder: Path) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    import pytest

    observer = Observer(wanted)
    sys.meta_path.insert(0, Replaced(replaced, __seen__=lambda name, number: observer.seen.add((name, number))))
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-m", ""]
    options += [f"--rootdir={ROOT}", f"--basetemp={folder / 'tmp'}", *(["-x"] if wanted else [])]
    status = pytest.main([*options, str(ROOT / test_file)], plugins=[observer])
    found = {"tests": observer.tests, "imported": observer.imported, "failures": observer.failures}
    keep(folder / "found.json", {**found, "cpu": time.process_time()})
    os._exit(int(status))


class Tests:
    """All tests as they are without a mutation: their time, and the functions that each calls."""

    def __init__(self, found: dict[str, dict[str, Any]], folder: Path) -> None:
        self._files, self.folder = found, folder
        # A test that fails without a mutation tells nothing.
        self._failing = {test for file in found.values() for test, _ in file["failures"]}

    def seconds(self, file: str) -> float:
        """When a run of the file is endless."""
        return TIMES * self._files[file]["cpu"] + LOADING_SECONDS

    def calling(self, name: str, scope: int | None) -> dict[str, dict[str, float]]:
        """The tests that call a function, or any one of the file where it is None, by file, the quickest file first."""
        found = {}
        for file, run in self._files.items():
            at_import = _calls(run["imported"], name, scope)
            every = self.passing(file)
            tests = {test: s for test, s in every.items() if at_import or self._test_calls(file, test, name, scope)}
            if tests:
                found[file] = tests
        if scope is None and not found:
            found = {file: self.passing(file) for file in self._files}
        return dict(sorted(found.items(), key=lambda item: sum(item[1].values())))

    def passing(self, file: str) -> dict[str, float]:
        tests = self._files[file]["tests"].items()
        return {test: found["seconds"] for test, found in tests if test not in self._failing}

    @property
    def files(self) -> Collection[str]:
        return sorted(self._files, key=lambda file: sum(self.passing(file).values()))

    def _test_calls(self, file: str, test: str, name: str, scope: int | None) -> bool:
        return _calls(self._files[file]["tests"][test]["seen"], name, scope)


def _calls(seen: Iterable[Any], name: str, scope: int | None) -> bool:
    return any(file == name and scope in (None, number) for file, number in seen)


def observed(sources: Collection[Path], workers: int, folder: Path) -> Tests:
    """Runs all tests once, without a mutation."""
    replaced = {file: recording(file, str(file.relative_to(ROOT))) for file in sources}
    paths = [ROOT / test for test in TESTS]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("test_*.py")))]
    names = [str(file.relative_to(ROOT)) for file in files if file.name not in SLOW]

    def observe(name: str) -> None:
        found = run(name, replaced, None, 3600)
        if "cpu" not in found:
            raise RuntimeError(f"{name}: {found}")
        keep(folder / "tests" / f"{name.replace('/', '.')}.json", found)

    at = {name: folder / "tests" / f"{name.replace('/', '.')}.json" for name in names}
    in_processes(observe, [name for name in names if not at[name].exists()], workers)
    if failed := [name for name in names if not at[name].exists()]:
        sys.exit(f"{failed[0]} did not run; what went wrong is above")
    return Tests({name: json.loads(at[name].read_text()) for name in names}, folder)


def keep(path: Path, found: object) -> None:
    """All of what was found or nothing."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found))
    part.replace(path)


def in_processes(work: Callable[[Any], None], items: Iterable[Any], workers: int) -> None:
    """Does the work on each item in a process of its own, as many at a time as there are workers."""
    running, waiting = set[int](), iter(items)
    while True:
        while len(running) < workers and (item := next(waiting, None)) is not None:
            child = os.fork()
            if not child:
                try:
                    work(item)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            running.add(child)
        if not running:
            return
        running.discard(os.wait()[0])


def judged(mutation: Mutation, tests: Tests) -> dict[str, Any]:
    """Which test notices the mutation, and how."""
    replaced = {mutation.file: source_of(mutation)}
    calling = tests.calling(str(mutation.file.relative_to(ROOT)), mutation.scope)
    began = time.time()
    for file, wanted in calling.items():
        if killer := _killer(file, replaced, wanted, tests):
            return {"killer": killer[0], "how": killer[1], "seconds": time.time() - began}
    return {"killer": None, "tests": sum(map(len, calling.values())), "seconds": time.time() - began}


def _killer(file: str, replaced: dict[Path, str], wanted: dict[str, float], tests: Tests) -> tuple[str, str] | None:
    while wanted:
        found = run(file, replaced, wanted, tests.seconds(file))
        status, failures = found["status"], found["failures"]
        if status in (PASSED, NONE_FOUND):
            return None
        if status == ENDLESS:
            return file, "takes ten times as long"
        if status < 0 and status != -signal.SIGKILL:
            return file, f"ends by signal {-status}"
        if status not in (FAILED, UNREADABLE) or not failures:
            raise RuntimeError(f"{file}: pytest ended with {status}: {found}")
        test, how = failures[0]
        if status == UNREADABLE or passes_alone(file, test, tests):
            return test, how
        wanted = {name: seconds for name, seconds in wanted.items() if name != test}
    return None


def passes_alone(file: str, test: str, tests: Tests) -> bool:
    """Whether the test passes without a mutation and without the tests before it; asked once for each."""
    at = tests.folder / "alone" / md5(test.encode()).hexdigest()
    if not at.exists():
        keep(at, run(file, {}, {test: 0.0}, tests.seconds(file))["status"] == PASSED)
    return bool(json.loads(at.read_text()))


def report(found: dict[Mutation, dict[str, Any]]) -> None:
    """Prints what survived and how much was killed, by folder and in all; exits with 1 where that is too little."""
    survivors = [mutation for mutation, result in found.items() if not result["killer"]]
    for mutation in sorted(survivors):
        print(f"survived: line {mutation.line} of {mutation.says}")
    folders = Counter(mutation.file.parent.name for mutation in found)
    survived = Counter(mutation.file.parent.name for mutation in survivors)
    for folder, count in sorted(folders.items()):
        print(f"{folder}: {count - survived[folder]} of {count} killed")
    share = 1 - len(survivors) / len(found)
    print(f"{len(found) - len(survivors)} of {len(found)} killed: {share:.1%}")
    sys.exit(share < SHARE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", default="", help="mutations with this text in their line")
    parser.add_argument("--folder", type=Path, help="where to keep what is found, and to find it again")
    parser.add_argument("--again", action="store_true", help="judge those anew that survived")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    for kind in ("tests", "alone", "mutations"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    names = [*(f"lora_inspect/{name}" for name in SOURCES), *TESTS]
    if missing := [name for name in names if not any(ROOT.glob(name))]:
        sys.exit(f"no file is called {', '.join(missing)}; name what is mutated and tested as it is called today")
    sources = [file for name in SOURCES for file in sorted(PACKAGE.glob(name)) if file.name not in LEFT_OUT]
    every = [mutation for file in sources for mutation in mutations_of(file, PACKAGE) if options.only in mutation.says]
    chosen = drawn(every, options.count, options.seed)
    print(f"{len(chosen)} of {len(every)} mutations in {len(sources)} files", flush=True)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder / "compiled")
    # What takes longest to load is loaded once; the package itself is loaded by each process.
    import _pytest.main  # noqa: F401
    import diffusers  # noqa: F401
    import hypothesis  # noqa: F401
    import lycoris  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import transformers  # noqa: F401

    loaded = [name for name in sys.modules if name.partition(".")[0] in ("lora_inspect", "networks")]
    assert not loaded, loaded
    gc.freeze()
    began = time.time()
    tests = observed(sources, options.workers, folder)
    for file in tests.files:
        for test, how in json.loads((folder / "tests" / f"{file.replace('/', '.')}.json").read_text())["failures"]:
            print(f"fails without any mutation, and is left out: {test}: {how}", flush=True)
    print(f"the tests ran without any mutation, {time.time() - began:.0f} s", flush=True)

    at = {mutation: folder / "mutations" / f"{md5(mutation.says.encode()).hexdigest()}.json" for mutation in chosen}

    def judge(mutation: Mutation) -> None:
        found = judged(mutation, tests)
        keep(at[mutation], {"says": mutation.says, **found})
        print(f"{'killed' if found['killer'] else 'SURVIVED'} in {found['seconds']:.0f} s: {mutation.says}", flush=True)

    def is_waiting(mutation: Mutation) -> bool:
        found = json.loads(at[mutation].read_text()) if at[mutation].exists() else None
        return not found or (options.again and not found["killer"])

    in_processes(judge, filter(is_waiting, chosen), options.workers)
    if open_ := [mutation.says for mutation in chosen if not at[mutation].exists()]:
        sys.exit(f"{len(open_)} are not judged, as {open_[0]}; what went wrong is above")
    report({mutation: json.loads(at[mutation].read_text()) for mutation in chosen})


if __name__ == "__main__":
    main()
