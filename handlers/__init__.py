"""What runs inside a TorchServe worker; every archive carries its own copy of this package."""
