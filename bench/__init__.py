"""`make bench`: each figure against its peer in the same run, as JSON lines and a table in docs/benchmarks.md."""
