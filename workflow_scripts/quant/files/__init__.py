"""Files that say what made them: JSON and CSV written whole, tensors read and written one at a time."""
