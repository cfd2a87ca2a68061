"""What a checkpoint costs: perplexity, divergence from the original, and each linear's exact error."""
