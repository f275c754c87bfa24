"""Low-rank operators of the optimization unit: structured (Hankel), locally low rank, low rank along the motion."""
