"""What a diffusion prior has to beat: reconstructions without any network, one file per optimisation problem."""
