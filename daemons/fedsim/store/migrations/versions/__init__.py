"""One module per version of the schema; a released module never changes."""
