"""The result store: stored answers, checkpoints of replies, locks."""
