"""Reconstruct an under-sampled scan from Python: `python -m examples.reconstruct`, in the project's folder."""

import matplotlib.pyplot as plt

from mri.fourier import fft2c, ifft2c
from mri.masks import make_mask
from mri.phantom import make_phantom
from sampling import reconstruct

kspace = fft2c(make_phantom(frames=16, size=96, seed=0))  # your scan: complex (frames, height, width), DC at n//2
mask = make_mask("uniform", tuple(kspace.shape), acceleration=4, acs=8)  # and where it was sampled

result = reconstruct(kspace * mask, mask, seed=0)  # the shipped GM and LM

print({name: result.settings[name] for name in ("passes_per_frame", "trust")})
figure, axes = plt.subplots(1, 2)
for axis, image, title in zip(axes, (ifft2c(kspace * mask), result.image), ("zero-filled", "GLDM"), strict=True):
    axis.imshow(image[6].abs(), cmap="gray")
    axis.set_title(title)
figure.savefig("reconstruct.png")
print("wrote reconstruct.png")
