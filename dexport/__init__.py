"""dexport compiles diffusion pipelines into bundles that run on edge devices without PyTorch."""
