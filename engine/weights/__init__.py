"""Weights on disk: layouts, reading, converting, what they are stored as."""
