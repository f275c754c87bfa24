"""Reconstruct an under-sampled scan in Python: `python -m examples.reconstruct`, in the project's folder."""

import matplotlib.pyplot as plt

from mri.coils import root_sum_of_squares
from mri.fourier import ifft2c
from mri.masks import make_mask
from mri.phantom import simulate_scan
from sampling import reconstruct

scan = simulate_scan("heart", frames=8, size=64, seed=0, coils=8, noise=0.01)
kspace = scan.kspace  # your scan: complex (frames, coils, height, width), DC at n//2
mask = make_mask("uniform", (8, 64, 64), acceleration=4, acs=8)  # where each frame was sampled

result = reconstruct(kspace, mask, noise_samples=scan.noise)  # with the shipped GM and LM

print("\n".join(result.notes))
zero_filled = root_sum_of_squares(ifft2c(kspace * mask[:, None]))
figure, axes = plt.subplots(1, 2)
for axis, image, title in zip(axes, (zero_filled, result.image), ("zero-filled", "GLDM"), strict=True):
    axis.imshow(image[6].abs(), cmap="gray")
    axis.set_title(title)
figure.savefig("reconstruct.png")
print("wrote reconstruct.png")
