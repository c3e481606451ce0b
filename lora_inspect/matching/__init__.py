"""Where the contributions of an adapter land in a base."""
