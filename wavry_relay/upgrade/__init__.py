"""Hot upgrade: a running relay hands everything to its successor."""
