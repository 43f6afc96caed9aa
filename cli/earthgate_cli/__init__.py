"""The command line of earthgate: it parses, calls one library function and prints."""
