"""The page of `report` in headless Chromium: nothing runs over, no message, nothing that axe finds, one A4 page."""

import base64
import re
import shutil

import pytest
from dense_sums import kohya

import lora_inspect

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed")
LEAVES = (*(f"{own}.{leaf}" for own in ("self_attn", "cross_attn") for leaf in "qkvo"), "ffn.0", "ffn.2")
WAN = {f"blocks.{block}.{leaf}": (32, 24) for block in range(40) for leaf in LEAVES}
SIZES = {"1280 x 800": (1280, 800, "light"), "800 x 1200, dark": (800, 1200, "dark")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage")
    for word in ("headless", "no-sandbox", "no-first-run", "hide-scrollbars", *(f"disable-{one}" for one in quiet)):
        options.add_argument(f"--{word}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, request):
    """A page of one adapter with all kinds of cells, one of a stack, and one with hostile metadata."""
    folder = tmp_path_factory.mktemp("pages")
    names = [f"{name}.safetensors" for name in ("style", "face", "light")]
    for seed, name in enumerate(names):
        kohya(folder / name, seed, rank=8, layers=WAN)
    fixtures = request.config.rootpath / "fixtures"
    made = {
        "one": names[0],
        "stack": [(names[0], 0.8), *names[1:]],
        "dora": fixtures / "synthetic" / "dora_without_flag.safetensors",
        "lokr": next((fixtures / "crepe-lycoris-lokr-conv").glob("lycoris*.safetensors")),
    }
    with pytest.MonkeyPatch.context() as patch:
        # As long as users' names, which the commands have, are.
        patch.chdir(folder)
        for name, adapters in made.items():
            lora_inspect.report(adapters, f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


NAMES = ("one", "stack", "dora", "lokr")


def opened(browser, path, width, height, scheme):
    """Shows a page in a window of this size, and in light or dark colours."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "height", "scheme"), SIZES.values(), ids=SIZES)
def test_a_page_fits_and_is_quiet(name, width, height, scheme, browser, pages):
    browser.get_log("browser")
    opened(browser, pages[name], width, height, scheme)
    assert browser.get_log("browser") == []
    wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, ...[...document.querySelectorAll('body *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('svg')).map(e => e.outerHTML)]"
    )
    assert wide == [width]
    background = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) is (scheme == "dark")


@pytest.mark.parametrize("name", NAMES)
def test_one_screen_shows_all_but_the_folds(name, browser, pages):
    opened(browser, pages[name], 1280, 800, "light")
    bottom = browser.execute_script("return document.querySelector('.charts').getBoundingClientRect().bottom")
    assert bottom <= 800


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(name, scheme, browser, pages):
    from axe_core_python.selenium import Axe

    opened(browser, pages[name], 1280, 800, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = Axe().run(browser)["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_on_one_page(name, browser, pages):
    opened(browser, pages[name], 1280, 800, "light")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    document = base64.b64decode(printed["data"])
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", document)) == 1
    (box,) = set(re.findall(rb"/MediaBox\s*\[([^\]]*)\]", document))
    assert [round(float(one)) for one in box.split()] == [0, 0, 842, 595]


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "\u202eevil", "a\0b", "long " * 20_000],
)
def test_hostile_metadata_run_nothing(text, browser, tmp_path):
    from safetensors.torch import load_file, save_file

    path, _ = kohya(tmp_path / "a.safetensors", 1, rank=2)
    save_file(load_file(path), path, {"modelspec.title": text, "ss_output_name": text})
    lora_inspect.report(path, tmp_path / "page.html")
    browser.get_log("browser")
    opened(browser, tmp_path / "page.html", 1280, 800, "light")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return [document.images.length, document.scripts.length]") == [0, 1]
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    shown = browser.execute_script("return [...document.querySelectorAll('dd')].map(e => e.textContent)")
    assert any(text[:10].replace("\u202e", "\\u202e").replace("\0", "\\x00") in one for one in shown)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 1280
