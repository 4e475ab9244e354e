"""What both services of the control plane are built on."""
