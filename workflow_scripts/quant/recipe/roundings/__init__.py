"""How weights find their grid points: a module and a function of its name for each rounding."""
