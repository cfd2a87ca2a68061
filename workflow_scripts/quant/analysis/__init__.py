"""What a model is like: its pre-activations, one layer in detail, and which parts suffer."""
