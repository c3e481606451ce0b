"""The steps of a conversion, from a module as it is read to a module as it is written."""
