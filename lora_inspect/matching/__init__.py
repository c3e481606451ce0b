"""The targets of an adapter's contributions in a base."""
