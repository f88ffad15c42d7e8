"""What `MergeBranches` is made of: changes in order, merged tree by tree, tried, and put where they are to be."""
