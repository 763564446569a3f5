"""A differential fuzz: random networks, run in every way there is, beside an independent meaning in PyTorch.

`generator` draws networks, `ways` draws how each is planned, compiled and called, `meaning` says what comes out, and
`differences` looks for anything that does not agree. A difference is made small by `shrinking`.
``python -m tests.fuzz --start 0 --count 1000`` runs a piece of it.
"""
