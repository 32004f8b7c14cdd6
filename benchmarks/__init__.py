"""Measurements of zrpc beside other systems, in one run: `python -m benchmarks.run`.

How it is put together, so that a further row or column is one file:

- `workloads/`: what is measured. Each module has `METRICS`, the processes that it needs, and `run(client, scale)`, which
  runs in the client's process.
- `casts`: the processes of a round. Workloads of one cast share them.
- `systems/`: whose calls are measured. Each module has `system(variant)`, that makes a `base.System`.
- `harness`: the processes for each round of each system, all with a deadline.
- `report`: medians and ratios, the tables and the JSON; `picture`: the picture.
"""
