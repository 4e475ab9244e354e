"""The Wavry relay: forwards datagrams that it cannot read, for as long as a lease allows."""
