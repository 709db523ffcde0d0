"""Volume: geometry, Hounsfield units, windows, the head, one case on disk. Arrays in, arrays out."""
