"""The rooms that import torch: layers and their verification."""
