"""Sending files to a peer until they are delivered: connections that are made again, transfers that are retried."""
