"""The terminal app: shows what the engine does, and never imports torch."""
