"""The commands of `fedsim`, a module for each group of them."""
