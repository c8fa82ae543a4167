"""Speed against the peers: one folder a benchmark, run by ``make bench-<folder>``.

A benchmark runs every contestant on the same input in the same run, each in a process of its own
(:mod:`benchmarks.measure`), peers as released, in virtual environments of their own
(:mod:`benchmarks.peer`), and writes its table into docs/benchmarks.md (:mod:`benchmarks.table`).
"""
