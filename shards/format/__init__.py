"""The bytes of a shard set on disk."""
