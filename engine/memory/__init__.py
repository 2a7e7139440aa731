"""Who may be on the device: the components of a model, one group after another."""
