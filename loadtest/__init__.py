"""Load tests and the performance table: real relay processes, a native packet generator, floors."""
