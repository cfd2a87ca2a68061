"""Which output channels to keep in 16 bit: a module and a function of its name for each score."""
