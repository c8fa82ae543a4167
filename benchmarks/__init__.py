"""Speed compared with the peers: one folder per benchmark, run by ``make bench-<folder>``.

A benchmark runs every contestant on the same input in the same run, each in its own process
(:mod:`benchmarks.measure`). Peers run as released, each in its own virtual environment
(:mod:`benchmarks.peer`). The table goes into docs/benchmarks.md (:mod:`benchmarks.table`).
"""
