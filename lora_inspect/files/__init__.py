"""Bytes in, bytes out: what is read from a disk and how an output comes onto it. Standard library only."""
