"""A model's token ids: from tokenizer.json, from a SentencePiece model, or from a GGUF file as llama.cpp counts."""
