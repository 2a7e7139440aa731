"""Colour themes, a TOML file each, in the schema that a user's own themes follow."""
