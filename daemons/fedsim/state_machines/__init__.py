"""What decides: the course of a task on the server and on a node, without input or output of its own.

Events go in, actions come out; time is handed over. Whatever is durable is restored from what the shell finds on disk.
"""
