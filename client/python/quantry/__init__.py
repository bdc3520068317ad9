"""Python side of quantry. `quantry.reader` reads quantry containers with numpy alone."""
