"""The shape of the images that a network is built for."""

Shape = tuple[int, int, int]  # (C, H, W)
