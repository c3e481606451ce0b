"""What an edit of metadata is made of: values, the keys that people know by name, and what a change would mean."""
