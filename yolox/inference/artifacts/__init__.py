"""What a saved model is: its manifest, its files, whom to trust, and how it is called."""
