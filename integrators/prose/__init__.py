"""What `Synthesize` is made of."""
