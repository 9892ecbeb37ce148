"""Lake tables as inputs: Delta, Iceberg, Lance; one snapshot a run, deleted rows never read."""
