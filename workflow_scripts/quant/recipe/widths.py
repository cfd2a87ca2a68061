"""The widths that a budget chooses among."""

UNTOUCHED = 16  # bits of a candidate that is the linear as it is
CANDIDATES = (2, 3, 4, 8, UNTOUCHED)  # of a budget that names none
