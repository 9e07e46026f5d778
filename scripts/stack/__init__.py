"""One TorchServe on this machine: started, told what to serve, asked how it is, stopped."""
