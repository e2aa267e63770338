"""Rate limits of a cell: token buckets in its Redis, which all its processes share."""
