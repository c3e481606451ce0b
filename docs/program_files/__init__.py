"""Small adapters in every naming scheme and of every kind, for the page of programs: see `docs/write_programs.py`."""
