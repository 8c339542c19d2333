"""The mathematics of diffusion: functions of tensors and callables."""
