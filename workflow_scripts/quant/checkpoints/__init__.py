"""What is written for others: packed and dense checkpoints, exports, and their cards."""
