"""What the workers of a study share: its storage, claims on its trials, how these come out."""
