"""The webhook receiver: verify, store, answer."""
