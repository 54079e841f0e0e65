"""Keys, certificates and signatures of a consortium: who a peer is, and which requests a site may trust."""
