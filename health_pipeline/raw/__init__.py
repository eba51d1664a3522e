"""The raw store: the exact bytes providers sent, compressed, under keys made of their own hash."""
