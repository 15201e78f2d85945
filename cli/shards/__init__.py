"""The verbs of `clsp shards`."""
