"""Measurements of zrpc beside other systems, in one run: `python -m benchmarks.run`.

How it is put together, so that a further row or column is one file:

- `workloads/`: what is measured. Each module has `METRICS` and `run(client, scale)`, which runs in the client's process.
- `systems/`: whose calls are measured. Each module has `system(variant)`, that makes a `base.System`.
- `harness`: a server and a client process for each round of each system, all with a deadline.
- `report`: medians and ratios, the table and the JSON.
"""
