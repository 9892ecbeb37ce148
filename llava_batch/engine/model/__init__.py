"""The model: one file for each family, and how it is loaded, sized and quantized."""
