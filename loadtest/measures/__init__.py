"""The measurements of the bench, one module each."""
