"""The oracle asks /proc what a process holds, and looks for files that only Unix has."""

import sys

collect_ignore_glob = [] if sys.platform.startswith("linux") else ["test_*.py"]
