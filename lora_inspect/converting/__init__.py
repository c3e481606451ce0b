"""The parts of an adapter's way into another form."""
