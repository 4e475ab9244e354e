"""Chaos: sessions of media run through a real system while its hosts fail and strangers attack it.

`schedule` says what comes when, from a seed; `system` is what it happens to; `faults` and
`attacks` are what happens; `sessions` are who must not notice; `journal` keeps what was seen,
`verdict` judges it and `report` prints it.  Schedule, journal, verdict and report are pure.
"""
