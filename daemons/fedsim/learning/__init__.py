"""The learning core: arrays in, arrays out. It knows no socket, file, clock, process or database.

So a whole task can run in one process (`simulate`) with the same code that the platform's workers run, and give the
same bytes. Code that does not train or test (`cohort`, `partition`, `strategies`, `aggregate`) need not import torch.
"""
