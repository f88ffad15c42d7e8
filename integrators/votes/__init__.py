"""What `Consensus` is made of."""
