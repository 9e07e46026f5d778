"""The front door: one Envoy before TorchServe, and the traffic documents that tell it who answers whom."""
