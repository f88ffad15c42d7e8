"""One attempt of a call: rate limiter, budget, call gate, validation."""
