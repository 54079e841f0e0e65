"""Keys, certificates and signatures: who is who in a consortium, and what a site believes."""
