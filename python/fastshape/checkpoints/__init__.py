"""Official checkpoints: how each repository names its parameters, and how its files are read."""
