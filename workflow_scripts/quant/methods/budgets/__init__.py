"""A width for each linear within a budget, chosen among finished methods: put together from them, or quantised by."""
