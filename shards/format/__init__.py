"""Read and write the bytes of a shard set on disk."""
