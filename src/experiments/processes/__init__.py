"""The processes of a machine or cluster: who trains together, who has which GPUs. Without JAX."""
