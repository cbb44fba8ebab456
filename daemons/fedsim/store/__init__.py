"""The database: what server and web ask of it (`interface`), and the one class that answers (`sql`)."""
