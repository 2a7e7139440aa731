"""Pictures as files: the settings inside them and the safe way onto the disk."""
