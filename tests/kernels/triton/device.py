"""Where Triton's tests run: on a card, or interpreted."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
