"""Which model: what its sources hold, the one checkpoint that is made of it, its tokenizer, and what it is built of."""
