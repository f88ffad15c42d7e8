"""What `MergeRecords` is made of."""
