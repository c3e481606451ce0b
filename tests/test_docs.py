"""The documentation names every option that there is, and no other."""

import ast
import importlib.util
import re
from pathlib import Path

import click
import pytest
from musubi_arguments import ARGUMENTS
from page_snippets import blocks_of

from lora_inspect import architectures
from lora_inspect.algorithms import every
from lora_inspect.cli.group import cli
from lora_inspect.files import strict_json
from lora_inspect.programs import PROGRAMS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, *sorted((ROOT / "integrations").rglob("*.md"))]
# The page that is written from the help has every option and explains none.
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "cli.md")
VERBS = cli.list_commands(None)


# Options of other programs, which their rules or messages name, or which start this one: those of vLLM, pip, pipx,
# Docker, sd-scripts, torchrun, Slurm and the script of this project that reruns programs.
FOREIGN = {
    *("--max-lora-rank", "--no-deps", "--concat"),
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"),
    *("--family", "--kind"),
    *("--array", "--cpus-per-task", "--job-name", "--mem", "--requeue"),
    *("--dest", "--find-links", "--no-index", "--network", "--rm", "--spec", "--tag", "--volume"),
}


def options_of(command: click.Command) -> set[str]:
    names = command.list_commands(None) if isinstance(command, click.Group) else ()
    below = [command.get_command(None, name) for name in names]
    own = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    return own.union(*map(options_of, below))


def options() -> set[str]:
    return {"--help", "--version"}.union(*(options_of(cli.get_command(None, verb)) for verb in VERBS))


@pytest.mark.parametrize("option", sorted(options() - {"--help", "--version"}))
def test_every_option_is_documented(option):
    assert re.search(rf"{option}\b", TEXT), (
        f"{option} stands in no page but docs/cli.md, which is written from the help: say what it does in the page of "
        "its verb, as docs/converting.md or docs/merging.md"
    )


def test_no_page_names_an_option_that_does_not_exist():
    # What belongs to other programs is written with underscores, as trainers do.
    for page in PAGES:
        # The table of renames has earlier names in its first column.
        text, _, renamed = page.read_text(encoding="utf-8").partition("### Renamed before the release\n")
        text += "".join(row.split(" | ")[-1] for row in renamed.splitlines())
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\b(?!_)", text))
        of_a_trainer = set().union(*ARGUMENTS.values()) if page.name == "training.md" else set()
        assert named <= options() | FOREIGN | of_a_trainer, page.name


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("folder", ["hf-lora", "pre-commit", "space"])
def test_pages_that_go_into_other_repositories_have_whole_addresses(folder):
    page = ROOT / "integrations" / folder / "README.md"
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert targets
    main = "https://github.com/lora-inspect/lora-inspect/blob/main/"
    for target in targets:
        assert target.startswith("https://"), target
        assert not target.startswith(main) or (ROOT / target.removeprefix(main)).exists(), target


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as they are shortened for links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", index)}
    assert {page for page in PAGES if page.name not in ("README.md", "CHANGELOG.md", "index.md")} <= named


# The longest page that a reader looks through for one task; a longer one is split by task.
MOST_WORDS = 3_000
# Written from the help of every command, which the reader searches.
LONGER = {"cli.md"}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_of_the_docs_is_short_enough_for_one_task(page):
    words = len(page.read_text(encoding="utf-8").split())
    assert words <= MOST_WORDS or page.name in LONGER, f"{page.name} has {words} words: split it by task"


def test_the_readme_names_every_verb_and_stays_short():
    readme = README.read_text(encoding="utf-8")
    assert all(f"lora-inspect {verb}" in readme for verb in VERBS)
    assert len(readme.splitlines()) <= 120
    assert len(readme.split()) <= 850


def test_the_two_sh_blocks_of_the_readme_are_those_that_ci_runs():
    first, second = (block.text for block in blocks_of(README) if block.language == "sh")
    assert "lora-inspect merge " in first
    assert "-m pytest" in second


def test_the_readme_shows_a_folder_and_a_file_of_the_checkout_first():
    shown = [command.text for block in blocks_of(README) if block.language == "console" for command in block.commands]
    folder, file = (ROOT / command.split()[-1] for command in shown[:2])
    assert folder.is_dir()
    assert file.is_file()


def test_every_recipe_of_the_readme_stands_in_the_page_whose_commands_are_run():
    recipes = re.findall(r"`(lora-inspect \w+ [^`]+)`", README.read_text(encoding="utf-8"))
    blocks = blocks_of(ROOT / "docs" / "recipes.md")
    run = {command.text for block in blocks if block.language == "sh" for command in block.commands}
    assert len(recipes) >= 10
    assert set(recipes) - run == set()


def test_the_readme_counts_programs_and_families():
    readme = README.read_text(encoding="utf-8")
    # A program has a record for each of its versions, and for what it does otherwise in a script: "sd-scripts (…)".
    titles = {program.title.partition(" (")[0] for program in PROGRAMS.values()}
    row = re.search(r"^\| \[programs\].* the rules of (\d+),.*$", readme, re.MULTILINE)
    assert int(row[1]) == len(titles)
    assert {title for title in titles if title not in row[0]} == {"AUTOMATIC1111's web UI"}
    assert int(re.search(r"^\| \[families\].*\| (\d+):", readme, re.MULTILINE)[1]) == len(list(architectures.every()))


CONCEPTS = (
    "checkpoint", "adapter", "contribution", "evidence", "algorithm", "change", "scheme", "architecture", "layout",
    "placement", "program", "verdict", "codec", "plan", "result",
)  # fmt: skip


def test_the_glossary_names_the_class_and_the_file_of_each_concept():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    concepts = page.split("# Concepts of the source\n")[1].split("\n# ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", concepts, re.MULTILINE)
    ]
    assert rows[0] == ["concept", "definition", "class and file", "example"]
    assert tuple(concept for concept, *_ in rows[2:]) == CONCEPTS
    for concept, definition, places, example in rows[2:]:
        named = re.findall(r"`(\w+)` in `([\w/]+\.py)`", places)
        assert named, concept
        assert definition, concept
        assert example, concept
        for name, path in named:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
            assert name in classes, f"{path} defines no {name}"


def test_every_bound_is_documented():
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    # SIZES is what a number of a header can be, and refuses no real file.
    bounds = {name: value for name, value in vars(strict_json).items() if name.isupper() and name[0] != "_"}
    numbers = {f"{value:,}" for name, value in bounds.items() if name != "SIZES"}
    assert len(numbers) >= 7
    assert [number for number in numbers if number not in page] == []


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_algorithms_is_that_of_the_registry():
    written = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert written == script("write_algorithms").page(), "run python docs/write_algorithms.py"


def test_the_page_of_architectures_is_that_of_the_registry():
    written = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert written == script("write_architectures").page(), "run python docs/write_architectures.py"


@pytest.mark.slow
def test_the_pages_of_programs_are_those_of_their_rules():
    pages = script("write_programs").pages()
    assert len(pages) == 6
    for name, text in pages.items():
        written = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert written == text, f"{name}: run python docs/write_programs.py"


def test_the_page_of_architectures_says_what_is_known():
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert "not known" not in page
    unconfirmed = re.findall(r"^\| \*\*([^*]+)\*\*.* names only \|$", page, re.MULTILINE)
    assert unconfirmed == ["ACE-Step", "HiDream-O1"], (
        "every other family is confirmed by a real class in tests/real_models.py"
    )


@pytest.mark.parametrize("algorithm", [one for one in every().values() if one.formula], ids=lambda one: one.name)
def test_every_algorithm_has_an_equation_and_somebody_who_writes_it(algorithm):
    assert algorithm.equation
    assert algorithm.writers
