"""Programs: how they are run and supervised, their environment, and the clean-up of their process trees."""
