"""What a model is built of: architectures, blocks and what they are called with, linears, experts, positions."""
