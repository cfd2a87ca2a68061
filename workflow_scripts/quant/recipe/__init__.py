"""A method's choices on tensors: salience, search, grid, rounding, protection."""
