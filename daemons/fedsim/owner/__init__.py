"""The program `fedsim-client`: the node's daemon, and the commands and the page with which its owner decides."""
