"""``wavryctl smoke``: does a running system serve two users, from log-in to a drained relay?"""
