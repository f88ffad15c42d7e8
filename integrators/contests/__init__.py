"""What `Tournament` is made of."""
