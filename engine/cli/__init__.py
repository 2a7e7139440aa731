"""Everything that talks on the command line."""
