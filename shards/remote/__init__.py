"""Keep shard sets in other places: copies that are checked, buckets, the hub, the cache."""
