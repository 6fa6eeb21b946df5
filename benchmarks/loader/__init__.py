"""The loader's speed beside its peers: ``python -m benchmarks.loader``; its order and its flatness over epochs."""
