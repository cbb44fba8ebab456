"""Tools of the control machine: certificate authority, gathering of packages, and fleet management over SSH.

The daemons never import this package.
"""
