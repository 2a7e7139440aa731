"""One picture's way through the phases; the same without weights; calibration."""
