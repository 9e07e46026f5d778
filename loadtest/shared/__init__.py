"""Many small versions: what a shared worker costs and gives."""
