"""Score networks: NCSN++, its checkpoint files, the published weights, and the priors that use them."""
