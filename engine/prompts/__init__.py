"""What people write for a prompt: variants, wildcards, and words of other programs that mean nothing here."""
