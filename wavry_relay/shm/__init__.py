"""Tables that the relay's processes share: one segment, one layout file."""
