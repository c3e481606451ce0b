"""The campaign: so many cases of a seed, counted by what came of them."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(_ROOT), str(_ROOT / "tests"), str(_ROOT / "fixtures")]

from fuzz.campaign import main  # noqa: E402

if __name__ == "__main__":
    main()
