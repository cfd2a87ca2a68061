"""Which model: read from where it is, held against its architecture, and what is known of its layers."""
