"""Statements: what a bank says that it did on a day, fetched, checked and only then believed.

`model` has the words, `csv_format`, `fixed_format` and `camt` read one format each as a stream,
`intake` believes a file whole or quarantines it whole, `fetch` gets it from the bank. Nobody else
reads a bank's bytes: reconciliation reads what `intake` has put on the shelf.
"""
