"""What the tests know of W&B: a server to log to, and a reader of what an offline run wrote."""
