"""What operators order, in both services: who may, what it does, and what is written down of it."""
