"""The commands of ``wavryctl``, one module for each group."""
