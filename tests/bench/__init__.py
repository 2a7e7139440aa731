"""Measurements that are too slow for the tests: run each with `python -m tests.bench.NAME`."""
