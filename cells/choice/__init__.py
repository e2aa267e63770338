"""Which channel is asked for a charge or payout, and which next: eligible, then worth most.

1 `terms` policies as they are in force → 2 `standings` what is believed of each channel →
3 `rules.decide` who may, what each is worth, in which order → 4 `document` so that anyone can see
why, and do it again.
"""
