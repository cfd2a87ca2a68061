"""Names of the parts by risk, in the records and in the table."""

RISKY, OTHER = "risky rows", "other rows"
