"""Which models there are and where: names, scanning, pairing, downloads."""
