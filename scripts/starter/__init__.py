"""A folder to start from: what `marctl init` writes for somebody who has installed marctl and has models of her own."""
