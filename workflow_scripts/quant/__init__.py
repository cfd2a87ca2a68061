"""Post-training quantisation on tensors: recipes, their statistics, and their comparison.

Importing this package imports nothing else; every module imports only what it uses.
"""
