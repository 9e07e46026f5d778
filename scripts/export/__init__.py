"""Takes a built version out of its archive, as a folder that runs without TorchServe and without this package."""
