"""What is particular to a kind of model, a folder each; `family.py` says what the rest of the engine may ask."""
