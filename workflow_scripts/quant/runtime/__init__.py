"""Where and how fast anything is computed: GPUs, precision and batches, faster products, forward passes and imports."""
