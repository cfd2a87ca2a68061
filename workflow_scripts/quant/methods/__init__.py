"""A recipe, or a library, applied to a whole model."""
