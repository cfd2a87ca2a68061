"""What one pass over the calibration text yields: second moments, channel means, and the blocks that run for them."""
