"""The one checkpoint that is made of any source: as transformers builds it, under published names, on record."""
