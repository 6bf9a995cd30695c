"""Planning memory and hours, and running stages one after the other."""
