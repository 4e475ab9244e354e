"""Media-shaped streams and how they are measured."""
