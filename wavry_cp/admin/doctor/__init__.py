"""``wavryctl doctor``: what is wrong, in which layer, by what one sees it, and what to do next.

Strategy: first every service, relay and port is asked at the same time (`gather`); the answers
are plain facts.  Then checks, which are functions of the facts alone, make findings of them.  What
another fault explains is marked as its consequence, and the first fault that nothing explains is
the one to repair (`diagnosis`).

Layers: ``gateway``, ``master``, ``relay``, ``network`` (between two of them, or between here and
one), and ``here`` for what is wrong with this machine or with how the doctor was called.
"""
