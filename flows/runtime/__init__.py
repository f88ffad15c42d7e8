"""Runtime of a flow run: flow classes, heartbeats, concurrency limits, provider batches, the record of the last run."""
