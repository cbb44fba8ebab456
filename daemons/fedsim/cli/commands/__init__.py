"""The commands of `fedsim`, one module for each group."""
