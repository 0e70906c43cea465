"""`tokenformer checkpoint …`: looking at checkpoints, and turning them into other files."""
