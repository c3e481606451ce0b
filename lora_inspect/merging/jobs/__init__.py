"""One merge by several processes: the shards that each makes, and the words between them."""
