"""Benchmarks: training steps, single operations, memory and call cost, beside PyTorch.

``convgrad bench`` runs them. A time means little on its own, so everything is timed in turn with
its peers in one process, and compared by medians.
"""
