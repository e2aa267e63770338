"""Two persons for what one must not do alone: an approval is asked for, given, and used once.

`control/access/gate.py` holds a call that needs one; the approval is bound to the call and its
parameters, ends with an etcd lease, and is used up in the same commit as what it allows.
"""
