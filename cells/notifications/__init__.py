"""Notifications: step 9 of a payment's walk. A merchant hears of events by signed webhooks.

consumer.py takes events from the stream and enqueues a delivery at the merchant's home; worker.py
sends what is due. Keeps invariant 6: an event has one delivery, however often it is consumed.
"""
