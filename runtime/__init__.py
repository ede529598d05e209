"""Bundle to pictures and videos, without PyTorch."""
