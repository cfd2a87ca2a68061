"""What other tools read: a module and a function of its name for each format."""
