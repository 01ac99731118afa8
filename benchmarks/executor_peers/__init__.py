"""Other programs that run steps in order, and the least that a durable one can do."""
