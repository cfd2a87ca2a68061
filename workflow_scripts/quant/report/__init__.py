"""One page: its sections, tables and figures."""
