"""The Space, over a hub on this machine: what it asks for, what it reads, and its page in headless Chromium."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from dense_sums import kohya
from hubs import answer_as_hub
from range_servers import serving

from lora_inspect.version import __version__

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "integrations" / "space"
STYLE, BIG = "rslora_flag.safetensors", "folder/big.safetensors"
HEADLINE = "RS-LoRA for Wan 2.1 / 2.2 - rank 4, scale 1.5 (alpha 3 / sqrt 4)"
COMMANDS = ("info", "check", "compat")


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def served(tmp_path_factory, fixtures):
    """A hub with a small adapter, and one of 4 MB that states a hash."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("served")
    (folder / "folder").mkdir()
    shutil.copyfile(fixtures / "synthetic" / STYLE, folder / STYLE)
    path, _ = kohya(folder / BIG, 1, rank=64, layers={f"blocks.{n}.self_attn.q": (1024, 1024) for n in range(8)})
    save_file(load_file(path), path, {"sshs_model_hash": "1" * 64})
    with serving(folder) as server:
        server.misdo = lambda handler, asked: answer_as_hub(server, handler, asked)
        yield server


@pytest.fixture
def hub(served, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", served.address)
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    served.asked.clear()
    return served


@pytest.mark.parametrize(
    ("repository", "file", "address"),
    [
        ("owner/name", "a.safetensors", "hf://owner/name/a.safetensors"),
        (" owner/name ", " sub/a b.safetensors ", "hf://owner/name/sub/a b.safetensors"),
        ("owner/name@v1.0", "/a.safetensors", "hf://owner/name@v1.0/a.safetensors"),
        ("hf://owner/name/", "a.safetensors", "hf://owner/name/a.safetensors"),
        ("https://huggingface.co/owner/name", "a.safetensors", "hf://owner/name/a.safetensors"),
        ("https://huggingface.co/owner/name/blob/main/sub/a.safetensors", "", "hf://owner/name@main/sub/a.safetensors"),
        ("https://huggingface.co/o/n/resolve/v1/a.safetensors?download=true", "", "hf://o/n@v1/a.safetensors"),
    ],
)
def test_a_repository_and_a_file_are_one_address(app, repository, file, address):
    assert app.address(repository, file) == address


@pytest.mark.parametrize(
    ("repository", "file"),
    [
        ("", "a.safetensors"),
        ("owner/name", ""),
        ("/etc", "passwd"),
        ("../owner/name", "a.safetensors"),
        ("--help/name", "a.safetensors"),
        ("https://models.example.com/owner/name", "a.safetensors"),
        ("s3://owner/name", "a.safetensors"),
        ("datasets/owner/name", "a.safetensors"),
        ("owner/name", "../a.safetensors"),
        ("owner/name", "sub/../../a.safetensors"),
        ("owner/name", "a.safetensors:alpha=4"),
        ("owner/name", "a.safetensors\n--json"),
        ("https://huggingface.co/owner/name/blob/main/../a.safetensors", ""),
    ],
)
def test_nothing_else_is_read(app, repository, file, hub):
    assert app.outputs(repository, file) == (app.FORM, "", "")
    assert hub.asked == []


@pytest.mark.slow
def test_each_command_reads_headers_by_ranges_and_without_a_login(app, hub):
    info, check, compat = app.outputs("owner/name", BIG)
    assert "rank 64" in info
    assert "hash-stale" not in check
    assert re.search(r"^comfyui +ComfyUI ", compat, re.MULTILINE)
    assert (hub.folder / BIG).stat().st_size > 4_000_000
    of_file = [one for one in hub.asked if BIG in one.path and one.sent]
    assert of_file
    assert all(one.headers.get("Range") for one in of_file)
    assert sum(one.sent for one in of_file) < 300_000
    assert not [one for one in hub.asked if "authorization" in {name.lower() for name in one.headers}]


def test_a_command_that_takes_too_long_is_a_sentence(app, hub, monkeypatch):
    monkeypatch.setattr(app, "COMMAND_SECONDS", 0.01)
    assert app.output("info", f"hf://owner/name/{STYLE}") == "No answer within 0.01 seconds; try again later."


def test_the_settings_of_the_space_are_those_of_this_version():
    _, head, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(head)
    assert (SPACE / "requirements.txt").read_text() == f"lora-inspect-light[remote]=={__version__}\n"
    assert settings["sdk"] == "gradio"
    assert (SPACE / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60
    # The hub names these colours, and no others.
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {settings["colorFrom"], settings["colorTo"]} <= colours


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
with_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed")
with_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: install the extra test-space"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.page_load_strategy = "none"  # the test waits for what it needs
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage")
    for word in ("headless", "no-sandbox", "no-first-run", "hide-scrollbars", *(f"disable-{one}" for one in quiet)):
        options.add_argument(f"--{word}")
    # No other machine is asked, whatever the page names.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@contextmanager
def space_at(hub, folder):
    """The Space in a process of its own, as the hub starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    log = (folder / "space.log").open("wb")
    process = subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        waits_until(lambda: answers(port) or process.poll() is not None, 120)
        assert process.poll() is None, (folder / "space.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def waits_until(holds, seconds):
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)
    return found


@pytest.mark.slow
@with_gradio
@with_browser
def test_the_page_shows_what_the_commands_print(browser, hub, tmp_path):
    from selenium.webdriver.common.by import By

    def fields(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def shown():
        texts = [fields(f"#{command} textarea")[0].get_property("value") for command in COMMANDS]
        return texts if all(texts) else None

    with space_at(hub, tmp_path) as address:
        browser.set_window_size(1280, 1400)
        browser.get(address)
        waits_until(lambda: fields("#read") and fields("#repository textarea, #repository input"), 60)
        for name, text in (("repository", "owner/name"), ("file", STYLE)):
            fields(f"#{name} textarea, #{name} input")[0].send_keys(text)
        fields("#read")[0].click()
        info, check, compat = waits_until(shown, 60)
        if pictures := os.environ.get("SPACE_PICTURES"):
            time.sleep(1)
            for width, scheme in ((1280, "light"), (420, "dark")):
                features = [{"name": "prefers-color-scheme", "value": scheme}]
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
                browser.set_window_size(width, 1400)
                time.sleep(2)
                browser.save_screenshot(f"{pictures}/space-{width}-{scheme}.png")
        wide = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert info.startswith(HEADLINE)
    assert "no problem in the header" in check
    assert "wrong strength x0.5" in compat
    assert wide <= 0
