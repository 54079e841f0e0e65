"""Keys, certificates and signatures: the identities in a consortium, and what a site accepts."""
