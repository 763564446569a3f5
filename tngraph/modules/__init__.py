"""The rooms that import torch: compiled networks as modules, their verification, measuring and tuning."""
