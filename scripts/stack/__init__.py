"""One stack on this machine: what is declared, its history, and the reconciler that makes it so."""
