"""Which tokens: texts, and the sequences of token ids that are made of them."""
