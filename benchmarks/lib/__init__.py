"""What the programs share: processes to start, a byte-exact client, a report that ends in PASS or FAIL."""
