"""Mutated files and odd command lines through every verb, and what must hold whatever they are.

`python tests/fuzz --cases 20000 --seed 3` runs more than the tests do and counts what came of it; `--case 123` shows
one case and runs it alone, `--keep FOLDER` leaves its files there, `--save NAME` puts it into the corpus. A case
depends on the seed and its number alone.
"""
