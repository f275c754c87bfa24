"""What knows nothing of MR or diffusion: errors, atomic files, checkpoint files, pictures."""
