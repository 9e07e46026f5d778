"""Many small versions in one process: each is loaded on its first request, and the one not asked for longest leaves."""
