"""``make release-check``: what docs/checklist.md says, run line by line."""
