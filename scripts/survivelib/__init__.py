"""The code of scripts/survive. The server does not import it."""
