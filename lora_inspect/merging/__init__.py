"""The parts of a base's way into a merged one."""
