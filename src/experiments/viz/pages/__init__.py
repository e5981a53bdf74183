"""Pages of several runs: of a comparison, of a study, and the workspace in W&B."""
