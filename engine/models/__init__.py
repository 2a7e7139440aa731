"""Which models there are, where their parts lie, and how their weights are read."""
