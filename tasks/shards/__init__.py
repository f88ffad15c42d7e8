"""Shards: batches of items that share a task run, in this process or in another."""
