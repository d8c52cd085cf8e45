"""Benchmarks: tasks x methods x seeds at equal oracle calls, see `docs/benchmarks.md`."""
