"""The outbox: step 8 of a payment's walk. What was committed with the money is told to the world.

store.py    unsent rows, marks and purges, fenced
stream.py   JetStream: the stream, its messages, publishing with acknowledgements
worker.py   the relay between the two

Keeps invariant 6: an event is in the stream at least once. Rows are found by "not sent", never by
the last ID, so one that commits late is not skipped (pitfall 17).
"""
