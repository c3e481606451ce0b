"""Five users' walks through a folder of 63 files: each question is answered by one command.

`fixtures/make_folder.py` writes the folder, and the expected answers follow from what it writes: numbers are computed
here from the stored factors. `answer` runs the one command of a test, whose kind has to stand in docs/recipes.md.
"""

import json
import math
import re
import shlex
from collections import Counter

import make_folder
import numpy as np
import pytest
from page_snippets import ROOT, blocks_of
from safetensors.numpy import load_file, save_file
from stored_changes import assert_near, change, factors, singular_values, stored_scale

from lora_inspect.sentences import width

FILES = make_folder.make_all()
WEIGHTS = (".safetensors", ".gguf", ".pt", ".ckpt", ".bin")
# Adapters that the rules of ComfyUI make something else of, by hand from docs/programs_names.md and programs_kinds.md.
DORA = {"sdxl/paint", "wan/snow", "wan/fog"}
CONVERTIBLE = {
    "wan/rain",  # RS-LoRA by its flag: half as strong
    "wan/dance_high_noise_r4",  # names of diffusers, of which ComfyUI's Wan takes none
    "wan/dance_low_noise_r4",
    "wan/peft",  # names of PEFT
    "sdxl/pixel",  # names of diffusers
    "sd15/pokemon",  # names of an early trainer of diffusers
    "hunyuan",  # names of musubi-tuner, in part
}
LANGUAGE = {"llm/assistant", "llm/assistant.gguf"}
UNKNOWN_SCALE, HALF = "unknown scale.safetensors", "broken/half.safetensors"
PICKLES = {path for path, data in FILES.items() if path.endswith((".pt", ".ckpt", ".bin"))}
MODEL_IN_GGUF = "flux/flux1-q4.gguf"
UNREADABLE = make_folder.broken().keys() - {HALF}
ADAPTERS = {
    path
    for path in FILES
    if path.endswith(WEIGHTS) and path not in {*PICKLES, MODEL_IN_GGUF, *UNREADABLE, *make_folder.other_models()}
}
# The layers of the files of Wan in kohya's names.
MODULES = ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_cross_attn_o")
OTHER_FILES = make_folder.beside().keys()


def short(path):
    """The name of a file in a table."""
    return path.removesuffix("adapter_model.safetensors").removesuffix(".safetensors")


def kind_of_command(words):
    """A verb with its options, and with the keys of conditions."""
    verb = " ".join(words[: 2 if words[0] == "metadata" else 1])
    options = {word for word in words if word.startswith("-") and word not in ("--json", "-o", "--where")}
    keys = {f"--where {words[at + 1].split('=')[0]}" for at, word in enumerate(words) if word == "--where"}
    return verb, frozenset(options | keys)


def recipes():
    commands = [
        command.text
        for block in blocks_of(ROOT / "docs" / "recipes.md")
        if block.language in ("sh", "console")
        for command in block.commands
    ]
    listed = [words for command in commands if (words := shlex.split(command))[0] == "lora-inspect"]
    return {kind_of_command(words[1:]) for words in listed}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder `loras`, and the base `model` of its language adapter."""
    folder = tmp_path_factory.mktemp("walks")
    make_folder.write(FILES, folder / "loras")
    make_folder.write(make_folder.make_model(), folder / "model")
    return folder


@pytest.fixture
def answer(place, run, monkeypatch):
    """Runs the command of a question, the only one of its test, on a terminal of 80 columns."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")
    asked = []

    def ask(*words):
        words = list(map(str, words))
        asked.append(words)
        ended = run(*words)
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended

    yield ask
    assert len(asked) == 1
    assert kind_of_command(asked[0]) in recipes(), "docs/recipes.md has no such command"
    assert not (place / "unpickled").exists()


@pytest.fixture
def prepared(place, run, monkeypatch):
    """Runs a command whose output a question is about."""
    monkeypatch.chdir(place)
    return lambda *words: run(*map(str, words)).json


def parts(shown):
    """The lines of an answer before its totals, and those of its totals."""
    lines = shown.stdout.splitlines()
    first = next(at for at, line in enumerate(lines) if re.match(r"\d+ (?:adapter|already)|in [A-Z].*: \d", line))
    return lines[:first], lines[first:]


def totals(shown):
    """Text -> number, of the last lines of an answer."""
    text = " ".join(" ".join(parts(shown)[1]).split())
    return {what: int(number) for number, what in re.findall(r"(\d+) ([A-Za-z][A-Za-z ]*?)(?=[,;:]| \d|$)", text)}


def test_the_generator_writes_63_small_files_alike_each_time(place):
    written = {
        path.relative_to(place / "loras").as_posix(): path.read_bytes()
        for path in (place / "loras").rglob("*")
        if path.is_file()
    }
    assert written == make_folder.make_all()
    assert len(written) == 63
    assert sum(map(len, written.values())) < 30_000_000


class TestHobbyist:
    """Has ComfyUI and a folder."""

    def test_what_is_all_this(self, answer):
        shown = answer("info", "loras")
        assert (shown.status, shown.stderr) == (1, "")  # some files are broken, and their rows say so
        assert max(map(width, shown.stdout.splitlines())) <= 80
        earlier = [f"wan/{name}.safetensors" for name in make_folder.EPOCHS][:-1]
        listed = ADAPTERS | PICKLES | UNREADABLE | {MODEL_IN_GGUF}
        names = [short(path) for path in listed - set(earlier)]
        (_, *lines), _ = parts(shown)
        for name in names:  # a longer one loses its middle, or has a line of its own
            assert len(name) > 18 or [line for line in lines if line.startswith(f"{name} ")], name
        beside = [line for line in lines if line in names or line.endswith("; --all lists each")]
        assert len(lines) - len(beside) == len(names)
        counted = totals(shown)
        assert counted == {
            "adapters": len(ADAPTERS),
            "fine by their headers": len(ADAPTERS) - len(CONVERTIBLE | DORA) - 4,
            # llama.cpp takes no root of llm/assistant; stable-diffusion.cpp misreads rank 1, that of sdxl/slider.
            "need convert": len(CONVERTIBLE | DORA) + 2,
            "info only": 1,
            "need an answer": 1,
            "other models": len(make_folder.other_models()),
            "duplicates": len(make_folder.COPIES),
            "broken": len(UNREADABLE),
            "pickles": len(PICKLES),
            "unread": 1,
            "other files": len(OTHER_FILES),
        }
        files = ("adapters", "other models", "broken", "pickles", "unread", "other files")
        configs = sum(path.endswith("adapter_config.json") for path in FILES)
        assert sum(counted[what] for what in files) + configs == 63

    def test_which_does_comfyui_load_wrong(self, answer):
        shown = answer("info", "loras", "--where", "comfyui=wrong")
        assert shown.status == 1
        lines = "\n".join(shown.stdout.splitlines()[1:])
        found = {name for name in map(short, ADAPTERS) if re.search(rf"^{re.escape(name)}\s", lines, re.MULTILINE)}
        assert {name.rstrip("/") for name in found} == CONVERTIBLE | DORA
        assert totals(shown)["adapters"] == len(CONVERTIBLE | DORA)

    def test_what_does_comfyui_make_of_each(self, answer):
        shown = answer("info", "loras", "--for", "comfyui")
        assert max(map(width, shown.stdout.splitlines())) <= 80
        counted = totals(shown)
        assert {what: counted[what] for what in ("load correctly", "wrong strength", "DoRA lost", "DoRA wrong")} == {
            "load correctly": len(ADAPTERS) - len(CONVERTIBLE | DORA) - len(LANGUAGE) - 2,
            "wrong strength": 1,
            "DoRA lost": 2,
            "DoRA wrong": 1,
        }
        assert (counted["partly loaded"], counted["nothing loaded"], counted["open or damaged"]) == (1, 5, 2)

    def test_mend_them_all(self, answer, tmp_path):
        ended = answer("convert", "loras", "--to", "comfyui", "-o", tmp_path / "out")
        assert ended.status == 1
        written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.safetensors")}
        assert written == {f"{name}.safetensors" for name in CONVERTIBLE}
        counted = totals(ended)
        skipped = len(PICKLES) + 1 + len(make_folder.other_models())
        failed = len(DORA | LANGUAGE | UNREADABLE) + 2
        right = len(ADAPTERS) - len(CONVERTIBLE | DORA | LANGUAGE) - 2
        assert [counted[what] for what in ("already load in ComfyUI", "converted", "skipped", "failed")] == [
            *(right, len(CONVERTIBLE), skipped, failed)
        ]
        named = {*DORA, *LANGUAGE, *map(short, UNREADABLE), short(HALF), short(UNKNOWN_SCALE)}
        assert all(re.search(rf"^Error: loras/{re.escape(name)}[.:]", ended.stderr, re.MULTILINE) for name in named)
        # alpha/sqrt(4) of the input is alpha/4 of the output.
        mended, module = tmp_path / "out/wan/rain.safetensors", "lora_unet_blocks_0_self_attn_q"
        wanted = change("loras/wan/rain.safetensors", module, 4 / math.sqrt(4))
        assert_near(change(mended, module, stored_scale(mended, module)), wanted)

    @pytest.mark.parametrize("name", make_folder.TRIGGER_WORDS)
    def test_which_words_call_a_file(self, name, answer):
        ended = answer("metadata", "get", f"loras/{name}.safetensors", "trigger-words")
        assert (ended.status, ended.stdout) == (0, make_folder.TRIGGER_WORDS[name])

    def test_which_file_answers_to_a_word(self, answer):
        shown = answer("info", "loras", "--where", "trigger=anime*")
        assert totals(shown)["adapter"] == 1
        assert re.search(r"^sdxl/anime ", shown.stdout, re.MULTILINE)

    def test_which_files_are_copies(self, answer):
        shown = answer("info", "loras", "--where", "duplicate=*", "--json")
        assert shown.status == 1
        found = {one["path"]: one["duplicate_of"] for one in json.loads(shown.stdout) if "error" not in one}
        name = "loras/{}.safetensors".format
        assert found == {name(copy): name(original) for copy, original in make_folder.COPIES.items()}

    def test_which_are_broken(self, answer):
        ended = answer("check", "loras", "--json")
        assert ended.status == 1
        found = {
            one["path"] for one in json.loads(ended.stdout) if "error" in {told["severity"] for told in one["problems"]}
        }
        wrong = {*UNREADABLE, *PICKLES, MODEL_IN_GGUF, HALF, UNKNOWN_SCALE}
        assert found == {f"loras/{path}" for path in wrong}

    def test_the_broken_ones_are_named(self, answer):
        ended = answer("check", "loras")
        assert ended.status == 1
        assert all(f"loras/{path}" in ended.stdout for path in {*UNREADABLE, *PICKLES, HALF, UNKNOWN_SCALE})
        assert "loras/flux/anna" not in ended.stdout

    def test_one_file_for_two(self, answer, tmp_path):
        inputs = {"loras/wan/style_HIGH.safetensors": 0.8, "loras/wan/ink.safetensors": 0.5}
        both = tmp_path / "both.safetensors"
        ended = answer("combine", *(f"{path}:{strength}" for path, strength in inputs.items()), "-o", both)
        assert ended.status == 0
        for module in MODULES:
            wanted = sum(change(path, module, strength * 4 / 4) for path, strength in inputs.items())
            assert_near(change(both, module, stored_scale(both, module)), wanted)

    def test_which_epochs_belong_together(self, answer):
        shown = answer("info", "loras", "--where", "name=ink*")
        assert totals(shown)["adapters"] == len(make_folder.EPOCHS) + 1  # and the copy of the last
        numbers = [round(8 * share) for share in make_folder.EPOCHS.values()]
        assert f"{len(numbers)} epochs: {numbers[0]} to {numbers[-1]}" in shown.stdout

    @pytest.mark.parametrize(
        ("name", "expert"),
        [
            *(("style_HIGH", "high noise"), ("style_LOW", "low noise"), ("OrbitHighNoise", "high noise")),
            *(("OrbitLowNoise", "low noise"), ("dance_high_noise_r4", "high noise"), ("walk_LN", "low noise")),
        ],
    )
    def test_for_which_expert_is_it(self, name, expert, answer):
        assert answer("info", f"loras/wan/{name}.safetensors", "--json").json["expert"] == expert


ASSISTANT = "loras/llm/assistant"
ASSISTANT_SCALE = make_folder.LANGUAGE_ALPHA / math.sqrt(make_folder.RANK)


def assistant_change(path):
    return change(f"{ASSISTANT}/adapter_model.safetensors", f"base_model.model.{path}", ASSISTANT_SCALE)


class TestEngineerOfLanguageModels:
    """Has an adapter of PEFT and servers."""

    def test_what_is_it(self, answer):
        told = answer("info", ASSISTANT, "--json").json
        assert (told["architecture"], told["trainer"], told["modules"]) == ("llm", "PEFT", len(make_folder.LLAMA))
        assert (told["ranks"], told["scales"], told["rslora"]["value"]) == ({"4": 14}, {"4": 14}, True)

    @pytest.mark.parametrize(
        ("program", "status", "verdict", "factor"),
        [("vllm", 0, "same meaning", 1.0), ("llama-cpp", 1, "wrong strength", 0.5)],
    )
    def test_will_a_server_take_it(self, program, status, verdict, factor, answer):
        ended = answer("compat", ASSISTANT, "--for", program, "--json")
        (told,) = json.loads(ended.stdout)["programs"]
        assert (ended.status, told["verdict"]) == (status, verdict)
        assert {float(key) for key in told["factors"]} == {factor}

    def test_convert_it_for_vllm(self, answer, tmp_path):
        assert answer("convert", ASSISTANT, "--to", "vllm", "-o", tmp_path / "for-vllm").status == 0
        config = json.loads((tmp_path / "for-vllm/adapter_config.json").read_text())
        scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
        for path in make_folder.LLAMA:
            module = f"base_model.model.{path}"
            found = change(tmp_path / "for-vllm/adapter_model.safetensors", module, scale)
            assert_near(found, assistant_change(path))

    def test_convert_it_for_llama_cpp(self, answer, tmp_path):
        from gguf import GGUFReader

        made = tmp_path / "assistant.gguf"
        assert answer("convert", ASSISTANT, "--to", "gguf", "--model-config", "model", "-o", made).status == 0
        read = GGUFReader(made)
        alpha = read.fields["adapter.lora.alpha"].contents()
        factors = {tensor.name: tensor.data.astype(np.float64) for tensor in read.tensors}
        # llama.cpp applies alpha/rank; it keeps the rows of queries and keys in an order of its own.
        for path, name in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
            down, up = (factors[f"blk.1.{name}.weight.lora_{letter}"] for letter in "ab")
            assert_near(alpha / len(down) * up @ down, assistant_change(f"model.layers.1.{path}"))

    def test_merge_it_into_its_base(self, answer, place, tmp_path):
        assert answer("merge", "model", ASSISTANT, "-o", tmp_path / "merged").status == 0
        base, merged = (load_file(folder / "model.safetensors") for folder in (place / "model", tmp_path / "merged"))
        assert base.keys() == merged.keys()
        for name, weight in base.items():
            path = name.removesuffix(".weight")
            if path in make_folder.LLAMA:
                assert_near(merged[name].astype(np.float64), weight + assistant_change(path), places=1.0)
            else:
                assert np.array_equal(merged[name], weight)

    def test_prove_the_merge(self, answer, prepared, tmp_path):
        prepared("merge", "model", ASSISTANT, "-o", tmp_path / "merged", "--json")
        told = answer("verify", tmp_path / "merged", "model", ASSISTANT, "--json").json
        assert told["ok"] is True
        assert list(told["share"].values()) == [pytest.approx(1.0, abs=0.01)]

    def test_a_model_without_it_is_found_out(self, answer):
        assert answer("verify", "model", "model", ASSISTANT).status == 1

    def test_what_is_the_old_one_without_safetensors(self, answer):
        assert "it is a pickle" in answer("info", "loras/llm/old").refusal


class TestAuthorOfTrainers:
    """Writes files that other programs read."""

    @pytest.mark.parametrize("name", ["ink", "rain"])
    def test_is_it_complete_and_finite(self, name, answer):
        assert answer("check", f"loras/wan/{name}.safetensors", "--tensors").status == 0

    def test_what_does_it_mean_and_why(self, answer):
        ended = answer("info", "loras/wan/rain.safetensors", "--why")
        assert ended.status == 0
        assert re.search(r"^RS-LoRA\b.* scale 2\b", ended.stdout)
        assert "use_rslora_flag" in ended.stdout

    @pytest.mark.parametrize(("name", "status"), [("ink", 0), ("rain", 1)])
    def test_does_comfyui_read_it_right(self, name, status, answer):
        file = f"loras/wan/{name}.safetensors"
        assert answer("compat", file, "--for", "comfyui", "--strict").status == status

    def test_average_of_the_epochs(self, answer, tmp_path):
        epochs = [f"loras/wan/{name}.safetensors" for name in make_folder.EPOCHS]
        assert answer("average", *epochs, "--exact", "-o", tmp_path / "mean.safetensors").status == 0
        mean = tmp_path / "mean.safetensors"
        for module in MODULES:
            wanted = sum(change(epoch, module, 1.0) for epoch in epochs) / len(epochs)
            assert_near(change(mean, module, stored_scale(mean, module)), wanted, places=8.0)

    def test_what_does_a_loop_of_ones_own_save(self, answer, tmp_path):
        import torch

        from lora_inspect.networks import adapt

        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
        network = adapt(model, rank=4, alpha=8, rslora=True)
        optimizer = torch.optim.SGD(network.get_trainable_params(), lr=0.1)
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()
        network.save_weights(str(tmp_path / "mine.safetensors"))
        told = answer("info", tmp_path / "mine.safetensors", "--json").json
        assert (told["modules"], told["ranks"], told["scales"]) == (2, {"4": 2}, {"4": 2})
        assert (told["rslora"]["value"], told["problems"]) == (True, [])


class TestPlatformEngineer:
    """Lets no wrong file through."""

    @pytest.mark.parametrize(("folder", "status"), [("loras/sdxl", 0), ("loras", 1), ("loras/old", 1)])
    def test_a_gate_for_damage(self, folder, status, answer):
        assert answer("check", folder).status == status

    @pytest.mark.parametrize(("folder", "status"), [("loras/flux", 0), ("loras/wan", 1)])
    def test_a_gate_for_a_program(self, folder, status, answer):
        assert answer("compat", folder, "--for", "comfyui", "--fail-on", "wrong").status == status

    def test_a_record_of_every_file(self, answer):
        ended = answer("info", "loras", "--jsonl")
        assert ended.status == 1
        records = [json.loads(line) for line in ended.stdout.splitlines()]
        listed = {f"loras/{path}" for path in FILES if path.endswith(WEIGHTS)}
        assert Counter(one["path"] for one in records) == dict.fromkeys(listed, 1)
        failed = {one["path"] for one in records if "error" in one}
        assert failed == {f"loras/{path}" for path in {*UNREADABLE, *PICKLES, MODEL_IN_GGUF}}
        assert all(line.startswith("Error: loras/broken/") for line in ended.stderr.splitlines())
        assert len(ended.stderr.splitlines()) == len(UNREADABLE)

    @pytest.mark.parametrize("path", sorted({*UNREADABLE, *PICKLES, MODEL_IN_GGUF}))
    def test_a_hostile_file_is_one_sentence(self, path, answer):
        assert f"loras/{path}: " in answer("info", f"loras/{path}").refusal

    def test_problems_for_a_code_host(self, answer):
        ended = answer("check", "loras", "--format", "sarif")
        (log,) = json.loads(ended.stdout)["runs"]
        places = {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in log["results"]}
        assert {"loras/broken/empty.safetensors", "loras/unknown%20scale.safetensors"} <= places


class TestResearcher:
    """Measures."""

    def test_how_far_are_two_adapters(self, answer):
        files = ["loras/wan/ink-000002.safetensors", "loras/wan/ink.safetensors"]
        told = answer("compare", *files, "--json").json
        products = np.zeros((2, 2))
        for module in MODULES:
            downs, ups = zip(*(factors(file, module) for file in files), strict=True)
            # <U D, U' D'> is the sum of (U^T U') * (D D'^T).
            products += [[((ups[i].T @ ups[j]) * (downs[i] @ downs[j].T)).sum() for j in (0, 1)] for i in (0, 1)]
        norms = np.sqrt(products.diagonal())
        assert told["norm"] == pytest.approx(list(norms), rel=1e-6)
        assert told["cosine"] == pytest.approx(products[0, 1] / norms.prod(), rel=1e-6)
        difference = math.sqrt(products[0, 0] - 2 * products[0, 1] + products[1, 1])
        assert told["relative_difference"] == pytest.approx(difference / norms[0], rel=1e-6)

    def test_which_files_are_one_change(self, answer):
        ended = answer("compare", "loras")
        assert ended.status == 0
        groups = re.findall(
            r"^2 files with one change:\n  loras/(.*?)\.safet.*\n  loras/(.*?)\.safet", ended.stdout, re.M
        )
        assert {frozenset(group) for group in groups} == {frozenset(pair) for pair in make_folder.COPIES.items()}

    def test_what_was_learned_between_two_models(self, answer, place, tmp_path):
        base = load_file(place / "model/model.safetensors")
        tuned = {name: weight.astype(np.float32) for name, weight in base.items()}
        drawn = np.random.default_rng(0)
        learned = {path: drawn.normal(size=(out, 2)) @ drawn.normal(size=(2, columns)) for path, (out, columns) in (
            make_folder.LLAMA.items()
        )}  # fmt: skip
        for path, difference in learned.items():
            tuned[f"{path}.weight"] += difference.astype(np.float32)
        save_file(tuned, tmp_path / "tuned.safetensors")
        ended = answer("extract", tmp_path / "tuned.safetensors", "model", "--rank", "2", "-o", tmp_path / "learned")
        assert ended.status == 0
        config = json.loads((tmp_path / "learned/adapter_config.json").read_text())
        weights = tmp_path / "learned/adapter_model.safetensors"
        for path, difference in learned.items():
            found = change(weights, f"base_model.model.{path}", config["lora_alpha"] / config["r"])
            assert np.abs(found - difference).max() <= 1e-5 * np.abs(difference).max()

    def test_a_smaller_file_at_a_stated_error(self, answer, tmp_path):
        small = tmp_path / "small.safetensors"
        told = answer("resize", "loras/wan/ink.safetensors", "--max-error", "0.6", "-o", small, "--json").json
        for module in MODULES:
            values = singular_values("loras/wan/ink.safetensors", module)
            errors = [math.sqrt((values[rank:] ** 2).sum() / (values**2).sum()) for rank in range(5)]
            rank = next(rank for rank, error in enumerate(errors) if error <= 0.6)
            own = singular_values(small, module, stored_scale(small, module))
            assert len(own) == rank < 4
            assert own == pytest.approx(values[:rank], rel=1e-3)
            assert told["worst"]["error"] >= errors[rank] - 1e-9
        assert told["error"] <= 0.6

    def test_how_much_does_the_first_direction_carry(self, answer):
        told = answer("resize", "loras/wan/ink.safetensors", "--rank", "1", "--dry-run", "--json").json
        energies = np.array([singular_values("loras/wan/ink.safetensors", module) ** 2 for module in MODULES])
        assert told["energy"] == pytest.approx(energies[:, 0].sum() / energies.sum(), rel=1e-6)
