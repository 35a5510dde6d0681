"""What the relay benchmark is made of: the servers it compares and the tools that measure them."""
