"""Users of the load tests: what locust runs; every module of this room imports locust or gevent."""
