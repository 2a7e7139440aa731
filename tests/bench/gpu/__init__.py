"""The memory manager and the kernels on a real card; `python -m tests.bench.gpu` measures them."""
