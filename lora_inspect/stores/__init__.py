"""Files that lie in stores and on servers: their addresses, how they are opened and read. fsspec is imported in calls.

Nothing here is imported before an address is named, so that commands on local files take no longer for it.
"""
