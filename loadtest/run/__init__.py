"""One run of the load tests: options, target, shapes, totals, verdict."""
