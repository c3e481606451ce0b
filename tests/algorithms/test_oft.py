"""OFT of LyCORIS and sd-scripts: what its alpha says."""

import pytest

from lora_inspect.algorithms.oft import settings
from lora_inspect.algorithms.record import Surroundings
from lora_inspect.reading.metadata.trainers import NETWORK_KEY

SD_SCRIPTS = {"ss_network_module": "networks.oft_flux"}


def around(alpha, key="lora_unet_x", metadata=None, shares_alpha=False):
    return Surroundings(key, {"blocks"}, None, metadata or {}, alpha, shares_alpha)


@pytest.mark.parametrize(
    "place",
    [
        around(None, metadata=SD_SCRIPTS),
        around(1e-9, metadata=SD_SCRIPTS),
        around(1e-9, "oft_unet_x"),
        around(1.0, metadata=SD_SCRIPTS),
        around(0.0),
        around(-1.0),
        around(0.0, metadata={"ss_network_module": "lycoris.kohya"}),
        # Our own network has the name of one of theirs.
        around(0.0, metadata={"ss_network_module": "networks.oft", NETWORK_KEY: "0.1.0"}),
    ],
)
def test_an_alpha_that_is_the_limit_everywhere(place):
    assert settings(place) == {}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (around(0.0, metadata=SD_SCRIPTS), "no rotation in sd-scripts"),
        (around(-1.0, "oft_unet_x"), "no rotation in sd-scripts"),
        (around(float("nan")), "not a finite number"),
        (around(float("inf")), "not a finite number"),
        (around(1.0, shares_alpha=True), "separate files"),
    ],
)
def test_an_alpha_that_leaves_the_limit_open(place, words):
    assert words in settings(place)
