"""Training of GM and LM: settings, objectives, data files, the loop, processes."""
