"""`report`: the numbers of the page against dense matrices, its commands, what is refused, and hostile metadata."""

import html
import json
import math
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch
from adapters import KINDS, adapter
from adapters import base as base_of
from dense_sums import LAYERS, key, kohya
from safetensors.torch import load_file, save_file

import lora_inspect
from lora_inspect import LoraInspectError, RefusedError, WouldOverwriteError
from lora_inspect.shell import command_line

pytestmark = pytest.mark.numeric
ROOT = Path(__file__).parents[2]
SPIKED = "blocks.0.self_attn.q"


class Page(HTMLParser):
    """The texts of a page by the elements that they stand in, its attributes, and the numbers in it."""

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.numbers = json.loads(next(text for place, text in self.texts if place[-1:] == ("script",)))

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "link", "path", "polygon", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def of(self, tag):
        """The texts of the elements of a tag."""
        return [text for place, text in self.texts if tag in place]

    def titles(self):
        return [value for _, name, value in self.attributes if name == "title"]


def written(folder, name="a.safetensors", seed=1, **options):
    """A page of a file of plain LoRA, with the dense changes of its layers."""
    path, changes = kohya(folder / name, seed, rank=4, alpha=3.0, **options)
    lora_inspect.report(path, folder / "page.html")
    return Page(folder / "page.html"), {layer: change.numpy() for layer, change in changes.items()}


def four(number):
    return float(f"{number:.4g}")


def test_numbers_of_the_page_are_those_of_the_dense_matrices(tmp_path):
    page, changes = written(tmp_path)
    (own,) = page.numbers["adapters"]
    layers = {one["module"]: one for one in own["layers"]}
    assert layers.keys() == set(map(key, changes))
    for name, change in changes.items():
        values = numpy.linalg.svd(change, compute_uv=False)[:4]
        one = layers[key(name)]
        assert (one["norm"], one["values"]) == (four(numpy.linalg.norm(change)), [*map(four, values)])
    energies = [numpy.linalg.svd(change, compute_uv=False) ** 2 for change in changes.values()]
    whole = sum(float(own.sum()) for own in energies)
    size = (tmp_path / "a.safetensors").stat().st_size
    for rank, (number, bytes_, energy) in enumerate(own["trims"], 1):
        assert (number, energy) == (rank, four(sum(float(own[:rank].sum()) for own in energies) / whole))
        gone = sum((4 - rank) * 4 * sum(change.shape) for change in changes.values())
        assert bytes_ == size - gone


def test_cells_of_the_map_show_the_root_mean_square(tmp_path):
    page, changes = written(tmp_path)
    strengths = {path: numpy.linalg.norm(change) / math.sqrt(change.size) for path, change in changes.items()}
    exponent = int(re.search(r"in units of 1e(-?\d+)", page.source)[1])
    for path, strength in strengths.items():
        block, _, _ = path.partition(".self_attn." if "self_attn" in path else ".ffn.")
        title = f"{block} {path.removeprefix(block + '.')}: {strength:.4g}"
        assert title in page.titles(), (title, page.titles()[:5])
        cell = re.search(re.escape(html.escape(title)) + r'[^"]*">([^<]*)<', page.source)[1]
        assert float(cell) == pytest.approx(strength / 10.0**exponent, abs=0.5)
    assert 10 <= round(max(strengths.values()) / 10.0**exponent) <= 100


def test_with_a_base_strengths_are_relative_to_the_weights(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 1, rank=4)
    weights = {f"{name}.weight": torch.randn(change.shape, generator=torch.Generator().manual_seed(7))
               for name, change in changes.items()}  # fmt: skip
    save_file(weights, base := tmp_path / "base.safetensors")
    lora_inspect.report(path, tmp_path / "page.html", base=base)
    page = Page(tmp_path / "page.html")
    assert "norm of the change over that of the weights" in page.source
    layers = {one["module"]: one for one in page.numbers["adapters"][0]["layers"]}
    for name, change in changes.items():
        share = float(change.norm() / weights[f"{name}.weight"].double().norm())
        assert layers[key(name)]["relative_norm"] == four(share)


def test_the_shrunk_size_is_that_of_resize(tmp_path):
    layers = {f"blocks.{number}.self_attn.q": (1536, 1280) for number in range(4)}
    path, _ = kohya(tmp_path / "a.safetensors", 1, rank=32, layers=layers)
    tensors = load_file(path)
    for name in [name for name in tensors if "lora_up" in name]:
        tensors[name] = tensors[name] * 0.7 ** torch.arange(32)
    save_file(tensors, path, {"ss_base_model_version": "wan2.1"})
    lora_inspect.report(path, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    (own,) = page.numbers["adapters"]
    resized = lora_inspect.resize(path, tmp_path / "small.safetensors", energy=0.99)
    assert own["shrunk_bytes"] == pytest.approx(resized.bytes, rel=0.02)
    share = own["shrunk_bytes"] / own["bytes"]
    assert share < 0.9
    assert f"shrinkable to {share:.0%} at 99% energy" in page.of("li")


def test_several_adapters_are_shown_together(tmp_path):
    files, changes = [], []
    for seed, multiplier in ((1, 0.8), (2, -0.5), (3, 1.0)):
        path, own = kohya(tmp_path / f"{seed}.safetensors", seed, rank=4)
        files.append((path, multiplier))
        changes.append({name: multiplier * change.numpy() for name, change in own.items()})
    result = lora_inspect.report(files, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    stack = page.numbers["stack"]
    flat = [numpy.concatenate([change.ravel() for change in own.values()]) for own in changes]
    for at, one in enumerate(flat):
        for behind, other in enumerate(flat):
            cosine = one @ other / numpy.linalg.norm(one) / numpy.linalg.norm(other)
            assert stack["cosine"][at][behind] == pytest.approx(cosine, abs=2e-4)
            assert f"{cosine:.3f}".replace("-0.000", "0.000") in page.of("td")
    energy = float(sum(flat) @ sum(flat)) / sum(float(one @ one) for one in flat)
    assert stack["sum_energy"] == four(energy)
    # The map is that of the sum.
    for name in changes[0]:
        whole = sum(own[name] for own in changes)
        assert any(f": {numpy.linalg.norm(whole) / math.sqrt(whole.size):.4g}" in title for title in page.titles())
    assert len(result.headlines) == 3
    assert [one["path"] for one in page.numbers["adapters"]] == [str(path) for path, _ in files]


def commands_of(page):
    """The commands that stand in a page."""
    return [html.unescape(re.sub(r"</?span>", "", found)) for found in re.findall(r"<pre>(.*?)</pre>", page.source)]


@pytest.mark.parametrize(
    "names", [["my 'own' file.safetensors"], ["a.safetensors", "b c.safetensors:0.5"], ["-a.safetensors"]]
)
def test_its_commands_run(names, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(names):
        kohya(tmp_path / name.partition(":")[0], seed, rank=4)
    ended = run("report", *(f"./{name}" if name.startswith("-") else name for name in names))
    assert (ended.status, ended.stderr) == (0, "")
    commands = commands_of(Page("report.html"))
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        assert (words[0], command_line(words)) == ("lora-inspect", command)
        ended = run(*words[1:])
        assert ended.status == 0, (command, ended.stderr)
        for made in {"combined.safetensors"} & set(os.listdir()):
            os.remove(made)


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, rank=4)
    pages = []
    for number in range(2):
        lora_inspect.report(path, out := tmp_path / f"{number}.html")
        pages.append(out.read_bytes())
    process = subprocess.run(
        [sys.executable, "-m", "lora_inspect", "report", path, "-o", out, "--force"],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}, capture_output=True, check=True,
    )  # fmt: skip
    assert process.stderr == b""
    assert pages == [out.read_bytes()] * 2


NUMBER = re.compile(r"(?<![0-9a-f])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![0-9a-f])")


def test_a_page_of_a_fixture_is_as_before(fixtures, tmp_path, monkeypatch):
    """Its last digits may be others on another processor."""
    monkeypatch.chdir(fixtures / "synthetic")
    lora_inspect.report("rslora_flag.safetensors", tmp_path / "page.html")
    found = (tmp_path / "page.html").read_text(encoding="utf-8")
    golden = (Path(__file__).parent / "rslora_flag.html").read_text(encoding="utf-8")
    # The rules of style are words.
    found, golden = (page.partition("<body>")[2] for page in (found, golden))
    assert NUMBER.sub("#", found) == NUMBER.sub("#", golden)
    for own, its in zip(NUMBER.findall(found), NUMBER.findall(golden), strict=True):
        digits = re.sub(r"e.*", "", its)
        exponent = float(f"1{its[len(digits) :]}")
        unit = exponent * 10.0 ** -len(digits.partition(".")[2])
        assert abs(float(own) - float(its)) <= unit * 1.001, (own, its)


HOSTILE = {
    "a script": "<script>alert(1)</script>",
    "the end of a script": "</script><img src=x onerror=alert(1)>",
    "attributes": '" onmouseover="alert(1)" \'',
    "a template": "{{ 7 * 7 }}{% for x in y %}",
    "marks of direction": "\u202eevil\u2066",
    "controls": "a\0b\x1b[31mc",
    "a long title": "long " * 20_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_are_text(text, tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, rank=2)
    tensors = load_file(path)
    save_file(tensors, path, {"modelspec.title": text, text[:200]: "a value", "ss_tag_frequency": text})
    lora_inspect.report(path, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    tags = {tag for tag, _, _ in page.attributes}
    assert "img" not in tags
    assert page.source.count("<script") == page.source.count("</script") == 1
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not set(page.source) & {"\0", "\x1b", "\u202e", "\u2066"}
    assert "49" not in page.of("dd")
    assert len(page.source) < 40_000
    shown = {"a long title": "long long", "marks of direction": "\\u202eevil", "controls": "a\\x00b"}
    name = next(name for name, own in HOSTILE.items() if own == text)
    assert any(shown.get(name, text) in value for value in page.of("dd"))


def test_hostile_names_of_files_and_modules_are_text(tmp_path):
    name = "<b>&\"'.safetensors"
    path, _ = kohya(tmp_path / name, 1, rank=2)
    tensors = load_file(path)
    odd = {old.replace("blocks_0_self_attn_q", "blocks_0_<i>_&"): value for old, value in tensors.items()}
    save_file(odd, path)
    lora_inspect.report(path, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert name in page.of("h1")
    assert not {"b", "i>"} & {tag for tag, _, _ in page.attributes}


# What no screen draws, or draws over other text: of C0 and C1, without width, of direction, and a mark of byte order.
UNSEEN = "\x07\x7f\x85\x9b\u200b\u202e\u2066\ufeff\xad"


@pytest.mark.parametrize("multipliers", [(1.0,), (0.8, 0.5)], ids=["adapter", "stack"])
def test_page_escapes_invisible_characters_of_every_name(multipliers, tmp_path):
    name = f"a{UNSEEN}.safetensors"
    path, _ = kohya(tmp_path / name, 1, rank=2)
    tensors = load_file(path)
    odd = {old.replace("blocks_0_self_attn_q", f"blocks_0_{UNSEEN}z"): own for old, own in tensors.items()}
    tags = json.dumps({"a": {f"tag{UNSEEN}": 2}}, ensure_ascii=False)
    stated = {"modelspec.title": f"a title{UNSEEN}", "ss_tag_frequency": tags, f"key{UNSEEN}": f"value{UNSEEN}"}
    save_file(odd, path, stated)
    files = [(path, one) for one in multipliers] if len(multipliers) > 1 else path
    lora_inspect.report(files, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    categories = {unicodedata.category(character) for character in page.source.replace("\n", "")}
    assert not {one for one in categories if one.startswith("C")}
    escaped = UNSEEN.encode("unicode_escape").decode()
    assert f"{escaped}z" in page.of("th")
    assert any(title.endswith(f"{escaped}z") for title in page.titles())
    assert {f"key{escaped}", f"value{escaped}", f"a title{escaped}"} <= {*page.of("dt"), *page.of("dd")}


def test_page_of_nan_names_error_in_chip_text_and_record(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = kohya("a.safetensors", 1, alpha=3.0)
    tensors = load_file(path)
    name = f"{key(SPIKED)}.lora_up.weight"
    tensors[name][0, 0] = math.nan
    save_file(tensors, path)
    ended = run("report", path)
    assert (ended.status, ended.stderr) == (0, "")
    assert re.search(rf"^a\.safetensors: error not-finite: NaN or infinities .*{name}", ended.stdout, re.MULTILINE)
    page = Page("report.html")
    assert "check: 1 error" in page.of("li")
    assert [one["code"] for one in page.numbers["adapters"][0]["problems"]] == ["not-finite"]
    (problem,) = run("report", path, "--force", "--json").json["problems"]
    assert problem.pop("message").startswith(f"NaN or infinities in 1 tensor ({name}")
    assert problem == {"path": path, "code": "not-finite", "severity": "error"}


def test_page_has_problems_of_check_with_numbers(tmp_path):
    """As a spike, numbers beyond F16, and factors of zeros."""
    path, _ = kohya(tmp_path / "a.safetensors", 1, alpha=3.0)
    tensors = load_file(path)
    tensors[f"{key(SPIKED)}.lora_up.weight"] *= 1e6
    tensors[f"{key('blocks.0.ffn.0')}.lora_up.weight"] *= 0
    save_file(tensors, path)
    checked = lora_inspect.check(path, tensors=True)
    assert {"half-overflow", "module-untrained"} <= {one.code for one in checked.problems}
    shown = lora_inspect.report(path, tmp_path / "page.html").problems
    assert [(one.path, one.code, one.severity, one.message) for one in shown] == [
        (path, one.code, one.severity, one.message) for one in checked.problems
    ]


def test_report_counts_bytes_of_all_readings(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    told = []
    lora_inspect.report(path, tmp_path / "page.html", progress=lambda done, total: told.append((done, total)))
    size = sum(one.numel() * one.element_size() for one in load_file(path).values())
    assert told[-1][0] == told[-1][1] >= 3 * size
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_page_needs_no_network_and_runs_nothing(tmp_path):
    page, _ = written(tmp_path)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in (value or ""))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    links = [value for _, name, value in page.attributes if name in ("href", "src", "action", "srcset", "data")]
    assert links == ["data:,"]
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_dora_is_named_without_a_base_and_shown_with_one(fixtures, tmp_path):
    path, out = fixtures / "synthetic" / "dora_without_flag.safetensors", tmp_path / "page.html"
    lora_inspect.report(path, out)
    page = Page(out)
    assert page.numbers["adapters"][0]["layers"] == []
    assert any(
        "10 modules not shown: the change of DoRA depends on the weight; report --base BASE" in one
        for one in page.of("p")
    )
    lora_inspect.report(path, out, base=fixtures / "synthetic" / "base_f32.safetensors", force=True)
    assert len(Page(out).numbers["adapters"][0]["layers"]) == 10


def boft(weights):
    """Tensors of LyCORIS's BOFT with one stage of two blocks, and the weights that it makes: R of each block times
    rows of both of its halves in turn."""
    numbers = torch.Generator().manual_seed(7)
    tensors, turned = {}, {}
    for path, weight in weights.items():
        size = len(weight) // 2
        blocks = 0.3 * torch.randn(1, 2, size, size, generator=numbers)
        order = [start + k + half for start in (0, size) for k in range(size // 2) for half in (0, size // 2)]
        skew, one = (blocks[0] - blocks[0].mT).double(), torch.eye(size, dtype=torch.float64)
        rotated = ((one + skew) @ (one - skew).inverse()) @ weight.double()[order].reshape(2, size, -1)
        turned[path] = torch.empty_like(weight, dtype=torch.float64)
        turned[path][order] = rotated.reshape(weight.shape)
        tensors |= {f"{key(path)}.oft_blocks": blocks, f"{key(path)}.alpha": torch.tensor(0.0)}
    return tensors, turned


def oft(weights):
    """Tensors of OFT with two blocks, and the weights that it makes."""
    tensors, meant = adapter(
        KINDS["oft large blocks"], {path: {"weight": weight} for path, weight in weights.items()}, key, True
    )
    return tensors, {path: meant[f"{path}.weight"].meant for path in weights}


@pytest.mark.parametrize("make", [oft, boft])
def test_stack_with_rotation_shows_sum_on_base(make, tmp_path):
    numbers = torch.Generator().manual_seed(3)
    weights = {path: 0.1 * torch.randn(shape, generator=numbers) for path, shape in LAYERS.items()}
    save_file({f"{path}.weight": weight for path, weight in weights.items()}, tmp_path / "base.safetensors")
    tensors, meant = make(weights)
    save_file(tensors, tmp_path / "turned.safetensors")
    # The last layer has the rotation only, so that no factor shows its inputs.
    lora, changes = kohya(tmp_path / "lora.safetensors", 1, layers=dict(list(LAYERS.items())[:-1]))
    files = [tmp_path / "turned.safetensors", (lora, 0.5)]
    lora_inspect.report(files, tmp_path / "page.html", base=tmp_path / "base.safetensors")
    titles = Page(tmp_path / "page.html").titles()
    for path, weight in weights.items():
        whole = meant[path] - weight.double() + 0.5 * changes.get(path, 0.0)
        assert any(f": {float(whole.square().mean().sqrt()):.4g}" in title for title in titles), path


def test_stack_with_rotation_at_multiplier_0_needs_no_base(tmp_path):
    tensors, _ = oft({path: torch.zeros(shape) for path, shape in LAYERS.items()})
    save_file(tensors, tmp_path / "turned.safetensors")
    lora, changes = kohya(tmp_path / "lora.safetensors", 1)
    lora_inspect.report([lora, (tmp_path / "turned.safetensors", 0.0)], tmp_path / "page.html")
    titles = Page(tmp_path / "page.html").titles()
    for path, change in changes.items():
        assert any(f": {float(change.square().mean().sqrt()):.4g}" in title for title in titles), path


@pytest.mark.parametrize("fixture", ["minilm-lycoris-loha-r8/lycoris.safetensors", "crepe-lycoris-lokr-conv",
                                     "experts/peft-0.19.0-qwen3-moe", "mlx/experts"])  # fmt: skip
def test_other_algorithms_have_a_page(fixture, fixtures, tmp_path):
    path = fixtures / fixture
    if path.is_dir() and not (path / "adapter_config.json").exists():
        path = next(path.glob("lycoris*.safetensors"))
    lora_inspect.report(path, tmp_path / "page.html")
    (own,) = Page(tmp_path / "page.html").numbers["adapters"]
    assert own["layers"]
    assert own["left_out"] == []


def test_a_stack_of_experts_has_a_page(fixtures, tmp_path):
    path = fixtures / "experts/peft-0.19.0-qwen3-moe"
    lora_inspect.report([path, (path, -0.5)], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.numbers["stack"]["cosine"] == [[1.0, -1.0], [-1.0, 1.0]]
    # Half of each change is left, of experts their root mean square over all numbers.
    (own, _) = page.numbers["adapters"]
    for layer in own["layers"]:
        strength = 0.5 * layer["norm"] / math.sqrt(math.prod(layer["shape"]))
        assert any(f"{strength:.3g}" in f"{float(title.rpartition(': ')[2].partition(',')[0]):.3g}"
                   for title in page.titles() if ": " in title and "norm" not in title)  # fmt: skip


def test_an_untrained_file_has_a_page(tmp_path, write_safetensors):
    path, _ = kohya(tmp_path / "a.safetensors", 1, rank=2)
    tensors = {name: torch.zeros_like(own) if "lora_up" in name else own for name, own in load_file(path).items()}
    save_file(tensors, path)
    lora_inspect.report(path, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert f"{len(LAYERS)} layers without a change" in page.of("p")[0]
    assert {value for tag, name, value in page.attributes if tag == "td" and name == "class"} == {"none"}
    lora_inspect.report([path, path], tmp_path / "two.html")
    assert "None of them changes anything." in Page(tmp_path / "two.html").of("p")


def test_a_page_is_small(tmp_path):
    """300 modules of rank 32 have a page of 300 kB at most, and of rank 128 of 600 kB."""
    leaves = [
        *(f"{attention}.{leaf}" for attention in ("self_attn", "cross_attn") for leaf in "qkvo"),
        "ffn.0",
        "ffn.2",
    ]
    layers = {f"blocks.{block}.{leaf}": (160, 144) for block in range(30) for leaf in leaves}
    for rank, most in ((32, 300_000), (128, 600_000)):
        path, _ = kohya(tmp_path / f"{rank}.safetensors", 1, rank=rank, layers=layers)
        assert lora_inspect.report(path, tmp_path / f"{rank}.html").bytes <= most


def test_refusals_leave_nothing(tmp_path, write_safetensors, monkeypatch):
    path, _ = kohya(tmp_path / "a.safetensors", 1, rank=2)
    out = tmp_path / "page.html"
    with pytest.raises(RefusedError, match="it is no adapter"):
        lora_inspect.report(write_safetensors(base_of(2)), out)
    with pytest.raises(
        LoraInspectError, match="a page of one adapter shows it at multiplier 1; leave the multiplier out"
    ):
        lora_inspect.report((path, 0.5), out)
    with pytest.raises(LoraInspectError, match=r"\.html"):
        lora_inspect.report(path, tmp_path / "page.safetensors")
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(WouldOverwriteError):
        lora_inspect.report(path, out)
    assert out.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        lora_inspect.NeedsLibraryError, match="its page is made with Jinja, which is missing; install it"
    ):
        lora_inspect.report(path, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_the_command_prints_the_headline_and_the_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kohya(tmp_path / "a.safetensors", 1, rank=4)
    ended = run("report", "a.safetensors")
    first, last = ended.stdout.splitlines()
    assert first.startswith("LoRA for Wan 2.1 / 2.2 - rank 4, ")
    assert re.fullmatch(r"wrote report\.html, \d+ kB", last)
    again = run("report", "a.safetensors")
    assert (again.status, again.stderr) == (1, "Error: report.html: it exists; choose another output or add --force.\n")
    record = run("report", "a.safetensors", "--force", "--json").json
    assert record["bytes"] == (tmp_path / "report.html").stat().st_size
