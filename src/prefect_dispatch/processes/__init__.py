"""Programs: how they are run, what they get to see, and how nothing of them is left behind."""
