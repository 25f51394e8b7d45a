"""What made what: signed statements of every stage, kept in a chain, and the record index behind them.

Nothing that determines a result imports this package, and nothing in it changes an artifact.
"""
