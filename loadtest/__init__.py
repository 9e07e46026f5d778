"""Load on a running stack: questions, generators, traffic shapes, reports, and other servers to compare with."""
