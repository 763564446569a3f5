"""The benchmark: compiled layers beside what else one could write for them. ``python -m tests.bench --help``."""
