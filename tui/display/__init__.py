"""The way to the terminal: what it shows (cells), how bytes get there without waiting (writer), and both (driver)."""
