"""Weights in fewer bits: how they are rounded, and how a linear layer computes with them."""
