"""What each library takes, and what it leaves: a module for each of quant.recipe.libraries."""
