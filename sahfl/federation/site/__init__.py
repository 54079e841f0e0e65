"""A hospital's side: its scans, its policy, what may leave and what has left."""
