"""What stages hand on to one another as JSON: types, and no code."""
