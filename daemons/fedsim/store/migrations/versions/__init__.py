"""One module per version of the schema; a module that was released never changes."""
