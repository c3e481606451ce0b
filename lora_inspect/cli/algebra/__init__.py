"""Commands of the adapter algebra."""
