"""The front gateway: one Envoy before TorchServe, and the traffic policies that tell it who answers whom."""
