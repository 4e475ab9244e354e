"""What a person keeps: identity, known peers, logins."""
