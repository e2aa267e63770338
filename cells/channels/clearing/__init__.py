"""A clearing house that speaks JSON over HTTPS, signs what it says, and answers later when it must.

`signing` is who said it, `messages` what was said, `rules` what that means, `channel` the adapter.
Callbacks come to a process of their own: cells.channels.callbacks.
"""
