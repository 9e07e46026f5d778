"""The stack's Prometheus page: one file for each part that has figures, and `page`, which serves them all.

Names follow https://prometheus.io/docs/practices/naming/: `handler_*` and `batcher_*` are the workers' own,
`gateway_*` Envoy's, `marctl_*` those of the stack's processes and their machine.
"""
