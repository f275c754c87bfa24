"""MR physics of dynamic Cartesian imaging: Fourier, masks, interleaving, low rank, data consistency."""
