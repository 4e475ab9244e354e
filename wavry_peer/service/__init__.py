"""What services share and an application never imports."""
