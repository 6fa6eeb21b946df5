"""Other loaders doing the work of ours, each in a process of its own: see :mod:`benchmarks.peers.turns`."""
