"""The parts of an edit of metadata: values, keys with names for people, and the meaning of a change."""
